"""CSD compared with its public code: whole iterations, stored predictions, and annealing of the scales."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.schedule import add_noise
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.csd import CSD
from tests.guidance import fakes, golden, stepwise
from tests.guidance.golden import Answer

CASES = ("stage2_start", "stage2_late", "normalized", "normalized_perp_neg")
FIRST = CSD()
SECOND = with_overrides(
    FIRST,
    {
        name.removeprefix("guidance."): value
        for name, value in CSD.presets["second_stage"].items()
        if name.startswith("guidance.")
    },
)
# The published number of iterations; the cases are some of these iterations.
ITERATIONS = 10_000


def _iteration(case, denoiser):
    stage = {1: FIRST, 2: SECOND}[case.settings["stage_of_settings"]]
    # The cases with the first stage's scales were run with the second stage's weights, in latent space.
    loss = dataclasses.replace(stage, weighting="variance", normalized=case.settings["normalized"])
    drawn = Draws(shared={}, per_view={"noise": jnp.asarray(case.noise), "times": jnp.asarray(case.times)})
    progress = Progress(case.settings["step"], ITERATIONS)
    return golden.gradient_of(loss, case.latents, case.texts(), drawn, denoiser, progress)


@pytest.mark.parametrize("name", CASES)
def test_an_iteration_with_the_network_equals_the_authors(name):
    case = golden.load_case("csd", name)
    with jax.disable_jit():
        gradient, numbers = _iteration(case, stepwise.network(len(case.latents)))
    assert golden.largest_difference(gradient, case["gradient"]) < 5e-5
    np.testing.assert_array_equal(numbers["time"], case.times)


@pytest.mark.parametrize("name", CASES)
def test_stored_predictions_give_the_gradient(name):
    case = golden.load_case("csd", name)
    texts = case.texts()
    with jax.enable_x64(True):
        state = np.asarray(add_noise(golden.schedule(), case.latents, case.noise, case.times))
        stored = [
            (case["epsilon_text"], texts.positive),
            (case["epsilon_negative"], texts.negative),
            (case["epsilon_empty"], texts.empty),
        ]
        for j in range(texts.weights.shape[1]):
            stored.append((case["epsilon_views"][:, j], texts.avoided[:, j]))
        answers = [Answer(epsilon, case.times, text, state) for epsilon, text in stored]
        gradient, _ = _iteration(case, golden.stored_denoiser(answers))
    assert gradient.dtype == np.float64
    assert golden.largest_difference(gradient, case["gradient"]) < 5e-6


@pytest.mark.parametrize("stage, loss", [("stage1", FIRST), ("stage2", SECOND)])
def test_bounds_and_scales_equal_the_authors_tables(stage, loss):
    tables = golden.load_tables("csd")
    steps = tables[f"{stage}/steps"]
    table = tables[f"{stage}/tmin_tmax_text_negative_empty_perp"]
    np.testing.assert_array_equal(loss.times.bounds(ITERATIONS)[steps], table[:, :2])
    scales = [scale[steps] for scale in loss.scales(ITERATIONS)]
    np.testing.assert_allclose(scales, table[:, 3:5].T, atol=1e-12)
    np.testing.assert_array_equal(table[:, [2, 5]], [[loss.text_scale, loss.perp_neg_scale]] * len(steps))


def test_the_norm_is_taken_over_all_views():
    case = golden.load_case("csd", "normalized")
    np.testing.assert_allclose(np.linalg.norm(case["gradient"]) * len(case.latents), 1.0, rtol=1e-6)


def _of_fakes(loss, text, denoiser, iteration=0):
    drawn = Draws(
        shared={}, per_view={"noise": jnp.asarray(fakes.latents(2)[::-1]), "times": jnp.array([300, 700])}
    )
    progress = Progress(iteration, ITERATIONS)
    return golden.gradient_of(loss, fakes.latents(2), text, drawn, denoiser, progress)


def test_a_text_that_makes_no_difference_moves_nothing():
    text = fakes.texts(2, avoided=0)
    silent = text.replace(positive=jnp.broadcast_to(text.empty, text.positive.shape))
    gradient, numbers = _of_fakes(CSD(), silent, fakes.smooth_denoiser(2))
    # Rather than NaN, although there is no norm to divide by.
    np.testing.assert_array_equal(gradient, 0.0)
    assert np.all(numbers["loss"] == 0)


def test_the_loss_is_told_before_the_gradient_is_divided_by_its_norm():
    text, denoiser = fakes.texts(2, avoided=2), fakes.smooth_denoiser(2)
    gradient, plain = _of_fakes(CSD(normalized=False), text, denoiser)
    _, normalized = _of_fakes(CSD(normalized=True), text, denoiser)
    np.testing.assert_allclose(plain["loss"], 0.5 * np.sum((2 * gradient) ** 2, axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(normalized["loss"], plain["loss"], rtol=1e-5)


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="weighting"):
        CSD(weighting="sds")
    with pytest.raises(UserError, match="anneal_iterations"):
        CSD(anneal_iterations=0)
