"""Measurement of tiny functions, and the resulting table, JSON and page."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from benchmarks import options, report
from benchmarks.iteration import guided_branches, iteration_flop, with_count
from benchmarks.measure import Measurement, measure_jax, time_calls
from benchmarks.models import SIZES, random_parameters
from benchmarks.networks import UNET_FORWARD, VAE_GRADIENT, inputs_of, work_flop

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.networks.vae import AutoencoderKL
from ge3d_jax.training.presets import preset


def test_warm_up_is_not_counted():
    calls = []
    seconds = time_calls(lambda: calls.append(None), repetitions=4, warm_up=3)
    assert len(calls) == 7 and len(seconds) == 4 and min(seconds) >= 0


def test_a_measurement_knows_what_ran():
    x = jnp.ones((8, 8))
    row = measure_jax("product", lambda x: x @ x, x, flop=1024, repetitions=3, warm_up=1)
    assert len(row.seconds) == 3 and row.compile_seconds > 0
    assert row.flop_per_second == 1024 / row.median
    # One matrix in, one out, float32, plus temporaries.
    assert row.peak_bytes >= 2 * 4 * 64


def test_random_weights_keep_activations_near_one():
    size = SIZES["toybox"]
    module = AutoencoderKL(size.vae)
    parameters = random_parameters(module, jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(parameters)} == {"bfloat16"}
    images = inputs_of(VAE_GRADIENT, size, 1)[0]
    encode = jax.jit(lambda parameters: module.apply({"params": parameters}, images, method="encode"))
    latents, _ = encode(parameters)
    assert 0.05 < float(jnp.std(latents)) < 20


def test_an_iteration_counts_its_useful_passes():
    size, paper = SIZES["toybox"], preset("paper")
    unet, vae = work_flop(UNET_FORWARD, size, 1), work_flop(VAE_GRADIENT, size, 1)
    # 6 nodes × (4 plain + 16 guided by Perp-Neg) = 120.
    assert iteration_flop(size, paper, 6) == 120 * unet + 4 * vae
    plain = with_overrides(paper, {"prompts.use_perp_neg": False})
    assert guided_branches(plain) == 2
    assert iteration_flop(size, plain, 2.5) == 30 * unet + 4 * vae


def test_splats_may_exceed_the_bound_of_the_preset():
    config = with_count(preset("toybox_ball"), 5000)
    assert config.scene.start.count == 5000 and config.scene.capacity >= 5000
    assert with_count(preset("toybox"), None) == preset("toybox")


@pytest.fixture
def content():
    rows = [
        Measurement("work a", "ge3d_jax", (2.0, 1.0, 9.0), flop=10**12, peak_bytes=10**9),
        Measurement("work a", "PyTorch eager", (4.0,), flop=10**12),
        Measurement("work a", "PyTorch compiled", note="no compiler"),
        Measurement("work b", "PyTorch eager", (4.0,)),
    ]
    return report.report(
        "unet",
        rows,
        settings={"model_size": "toybox"},
        dtype=jnp.dtype(jnp.float32),
        matmul_flop_per_second=4e12,
    )


def test_ratios_and_shares(content):
    ours, eager, compiled, other = content["rows"]
    assert ours["median_seconds"] == 2.0 and ours["ours_over_theirs"] is None
    assert ours["share_of_matmul_rate"] == 0.125
    assert eager["ours_over_theirs"] == 0.5
    assert compiled["median_seconds"] is None and compiled["ours_over_theirs"] is None
    # There is no row of our own to compare with.
    assert other["ours_over_theirs"] is None


def test_json_and_page(content, tmp_path, capsys):
    report.print_table(content)
    assert "PyTorch eager" in capsys.readouterr().out
    path = report.save(content, tmp_path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(content))
    assert "cpu" in path.name and "toybox" in path.name
    page = (tmp_path / "README.md").read_text()
    assert "| work a | ge3d_jax | 2.00 s | 1.00 s | 0.500 | 12% | 1,000 MB |" in page
    assert "Not measured yet" in page and "≥ 50%" in page
    report.save(content | {"platform": "gpu", "device": "Some GPU"}, tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "Some GPU" in page and "Not measured yet" not in page


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(options, "PEER", SimpleNamespace(value="torch"))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "benchmarks.peer", raising=False)
    with pytest.raises(UserError, match="needs the package diffusers; run pip install"):
        options.load_peer("benchmarks.peer")
    monkeypatch.setattr(options, "PEER", SimpleNamespace(value="none"))
    assert options.load_peer("benchmarks.peer") is None
