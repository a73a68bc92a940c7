"""The page with the rasterizer's times."""

import datetime
import json

import jax.numpy as jnp
from benchmarks import render_report
from benchmarks.measure import Measurement
from benchmarks.render_plot import draw
from benchmarks.rendering import BACKWARD, FORWARD, Case, ball


def test_the_page_shows_the_measurements(tmp_path):
    cases = [Case(1000, 50, 4, FORWARD), Case(1000, 50, 1, BACKWARD)]
    ours = [
        Measurement("", "ge3d_jax", (0.008, 0.004, 0.036), compile_seconds=1.5, peak_bytes=3_000_000),
        Measurement("", "ge3d_jax", (0.002,), compile_seconds=2.5),
    ]
    peer = [Measurement("", "PyTorch eager", (0.4,)), Measurement("", "PyTorch eager", note="not run")]
    content = render_report.report(
        cases, ours, [500, 700], [0.008, 0.004], peer, repetitions=3, date=datetime.date(2026, 1, 2)
    )
    draw(content, render_report.plot_path(content, tmp_path))
    # A file of another benchmark in the same folder.
    (tmp_path / "other.json").write_text('{"rows": 7}')
    path = render_report.save(content, tmp_path)
    assert json.loads(path.read_text())["rows"][0]["median_seconds"] == 0.008
    page = (tmp_path / "README.md").read_text()
    assert "| 1,000 | 50 | 4 | forward | 2 | 2 | 2,000 | 800 | 4,000 | 3 MB | 1.5 s | 100 | 50 |" in page
    assert (
        "| 1,000 | 50 | 1 | forward + backward | 2 | 4 | 4,000 | 1,600 | 5,714 | – | 2.5 s | – | – |" in page
    )
    assert "](" + next(tmp_path.glob("*.png")).name + ")" in page
    assert "2026-01-02" in page and "Not measured yet" in page


def test_the_scene_covers_the_same_area_with_any_number_of_splats():
    for count in (100, 800):
        splats = ball(count)
        assert splats.capacity == count
        assert float((splats.positions**2).sum(-1).max()) <= 0.25 + 1e-6
    ratio = jnp.exp(ball(100).log_scales[0, 0] - ball(800).log_scales[0, 0])
    assert abs(float(ratio) - 2.0) < 1e-5
