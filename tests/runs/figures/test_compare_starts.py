"""Objects from two starts on a tiny model: their initial state, and how soon they are recognized."""

import numpy as np
import pytest

from ge3d_jax.runs.figures import compare_starts
from ge3d_jax.runs.figures.base import Work
from ge3d_jax.runs.figures.compare_starts import SIZES, STARTS, draw_objects, first_recognized, rows_of
from ge3d_jax.runs.trials import Trial
from ge3d_jax.scenes.start.point_e.start import PointEStart
from tests.runs.figures.tiny_losses import PROMPTS, TINY, dark_grays, done_by_hand, tiny_judges, tiny_settings

SHARES = (0.0, 0.5)


@pytest.fixture(scope="module")
def made(tiny_place, tmp_path_factory):
    # A box replaces Point-E, as another start that needs no weights.
    trials = tuple(Trial("sds", TINY, start=start) for start in ("ball", "box"))
    settings = tiny_settings(
        trials=trials, prompts=PROMPTS[:1], seeds=(0,), shares=SHARES, budget=0.5, metrics=("psnr",)
    )
    work = Work("small", tmp_path_factory.mktemp("starts"), str(tiny_place), lambda line: None)
    return compare_starts.make(work, settings=settings, judges=tiny_judges())


def test_each_object_is_judged_once_it_has_begun_and_at_its_end(made):
    for start in ("ball", "box"):
        own = [row for row in made.rows if row["start"] == start]
        last = own[-1]["iterations"]
        assert [row["iterations"] for row in own] == sorted({1, max(1, round(0.5 * last)), last})
    first = {row["start"]: row["psnr"] for row in made.rows if row["moment"] == 0}
    assert first["ball"] != first["box"]


def test_the_tables_have_a_line_for_each_start(made):
    lines = made.text.replace("**", "").splitlines()
    assert lines[0].startswith("2 objects, made in about 0.5 seconds each by the preset `toybox64`")
    assert [line.split(" | ")[0] for line in lines if line.startswith("| b")] == ["| ball", "| box"] * 2
    ends = {row["start"]: row["psnr"] for row in compare_starts.ends_of(made.rows)}
    for start in ("ball", "box"):
        assert any(line.startswith(f"| {start} | {ends[start]:.1f}") for line in lines)
    assert set(made.pictures) == {"", "objects"}


def moment(views_right, iterations):
    return {"views_right": views_right, "iterations": iterations, "psnr": 20.0, "chamfer": 0.1}


def test_an_object_is_recognized_when_all_its_views_first_are():
    sooner = [moment(0.5, 1), moment(1.0, 10), moment(0.9, 20), moment(1.0, 40)]
    never = [moment(0.0, 1), moment(0.9, 10), moment(0.9, 20), moment(0.99, 40)]
    shades = [1, 2, 3, 4]
    by_ball = done_by_hand("ge3d", shades, sooner, prompts=PROMPTS, start="ball")
    by_points = done_by_hand("ge3d", shades, never, prompts=PROMPTS, start="point_e")
    rows = rows_of([by_ball, by_points])
    assert first_recognized(rows[:8]) == [10, 10]
    assert first_recognized(rows[8:]) == []
    header, _, ball, points = compare_starts.recognition_table(rows).strip().splitlines()
    assert header.startswith("| start | views recognized after the first iteration |")
    assert ball == "| ball | 0.50 | 2 of 2 | 10 | 40 |"
    assert points.startswith("| point_e | 0.00 | 0 of 2 | ") and points.endswith(" | 40 |")
    assert [row["iterations"] for row in compare_starts.ends_of(rows)] == [40] * 4


def test_the_picture_has_the_fronts_of_both_starts_side_by_side():
    moments = [moment(1.0, 1), moment(1.0, 10)]
    pair = [
        done_by_hand("ge3d", shades, moments, prompts=PROMPTS[:1], shares=(0.0,), start=start)
        for start, shades in (("ball", [2, 12]), ("point_e", [22, 32]))
    ]
    found = dark_grays(draw_objects(pair))
    rows, columns = np.asarray([found[shade] for shade in (2, 12, 22, 32)]).T
    assert len(set(rows)) == 1 and list(columns) == sorted(columns) and len(set(columns)) == 4


def test_sizes_begin_alike_but_for_the_start():
    for size, settings in SIZES.items():
        one, other = (trial.settings(settings.preset) for trial in settings.trials)
        assert [trial.start for trial in settings.trials] == list(STARTS)
        assert isinstance(other.scene.start, PointEStart) and not isinstance(one.scene.start, PointEStart)
        assert one.guidance == other.guidance and one.iterations == other.iterations
        assert (other.scene.start.model == "bundled") == (size != "paper")
    assert len(SIZES["full"].prompts) == 24
