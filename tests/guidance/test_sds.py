"""SDS compared with threestudio's code: whole iterations of the bundled network, and stored predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.schedule import add_noise
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.sds import SDS
from ge3d_jax.guidance.times import UniformTimes
from tests.guidance import golden, stepwise
from tests.guidance.golden import Answer

CASES = ("plain", "perp_neg_front", "perp_neg_back", "uniform")
WEIGHTINGS = {"sds": "variance", "uniform": "uniform"}


def _loss(case):
    settings = case.settings
    return SDS(scale=settings["guidance_scale"], weighting=WEIGHTINGS[settings["weighting"]])


def _drawn(case):
    return Draws(shared={}, per_view={"noise": jnp.asarray(case.noise), "times": jnp.asarray(case.times)})


def _iteration(case, denoiser):
    return golden.gradient_of(
        _loss(case), case.latents, case.texts(), _drawn(case), denoiser, Progress(0, 10)
    )


@pytest.mark.parametrize("name", CASES)
def test_an_iteration_with_the_network_equals_threestudios(name):
    case = golden.load_case("sds", name)
    with jax.disable_jit():
        gradient, numbers = _iteration(case, stepwise.network(len(case.latents)))
    assert golden.largest_difference(gradient, case["gradient"]) < 5e-5
    assert np.mean(numbers["loss"]) == pytest.approx(case.settings["loss"], rel=5e-5)
    np.testing.assert_array_equal(numbers["time"], case.times)


@pytest.mark.parametrize("name", CASES)
def test_stored_predictions_give_the_gradient(name):
    case = golden.load_case("sds", name)
    texts = case.texts()
    answers = [
        Answer(case["epsilon_text"], case.times, texts.positive, case["noised"]),
        Answer(case["epsilon_negative"], case.times, texts.negative, case["noised"]),
    ]
    for j in range(texts.weights.shape[1]):
        answers.append(Answer(case["epsilon_views"][:, j], case.times, texts.avoided[:, j], case["noised"]))
    with jax.enable_x64(True):
        denoiser = golden.stored_denoiser(answers)
        gradient, numbers = _iteration(case, denoiser)
        noised = add_noise(denoiser.schedule, case.latents, case.noise, case.times)
        branches = denoiser.branches(noised, case.times, texts, texts.negative)
        guided = branches.guided_from_text(case.settings["guidance_scale"])
    assert gradient.dtype == np.float64
    assert golden.largest_difference(noised, case["noised"]) < 1e-6
    assert golden.largest_difference(guided, case["guided_epsilon"]) < 1e-6
    assert golden.largest_difference(gradient, case["gradient"]) < 1e-6
    assert np.mean(numbers["loss"]) == pytest.approx(case.settings["loss"], rel=1e-5)


def test_views_have_times_and_noises_of_their_own():
    loss = SDS(times=UniformTimes(high=500))
    keys = golden.draw_keys(0)
    drawn = loss.draw(keys, Progress(3, 10), (64, 4, 4, 4)).per_view
    assert len(set(np.asarray(drawn["times"]).tolist())) > 32
    assert float(jnp.std(drawn["noise"])) == pytest.approx(1.0, abs=0.05)
    assert float(jnp.max(jnp.abs(drawn["noise"][0] - drawn["noise"][1]))) > 0.1
    assert loss.latest_time == 500


def test_an_unknown_weighting_is_named():
    with pytest.raises(UserError, match="weighting"):
        SDS(weighting="sds")
