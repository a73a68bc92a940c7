"""MVDream's loss compared with its public code: whole iterations, and stored predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.schedule import add_noise
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.mvdream import MVDream
from tests.guidance import fakes, golden, stepwise
from tests.guidance.golden import Answer

CASES = ("rescaled", "not_rescaled")
VIEWS = 4


def _texts(case):
    # MVDream does not name the view in the prompt.
    texts = case.texts()
    positive = np.broadcast_to(golden.embedding(case.settings["prompt"]), (VIEWS, *texts.plain.shape))
    return texts.replace(positive=jnp.asarray(positive))


def _iteration(case, denoiser, texts):
    settings = case.settings
    loss = MVDream(scale=settings["guidance_scale"], recon_std_rescale=settings["recon_std_rescale"])
    drawn = Draws(shared={}, per_view={"noise": jnp.asarray(case.noise), "times": jnp.asarray(case.times)})
    return golden.gradient_of(loss, case.latents, texts, drawn, denoiser, Progress(0, 10))


@pytest.mark.parametrize("name", CASES)
def test_an_iteration_with_the_network_equals_the_authors(name):
    case = golden.load_case("mvdream", name)
    with jax.disable_jit():
        gradient, numbers = _iteration(case, stepwise.network(VIEWS), _texts(case))
    assert golden.largest_difference(gradient, case["gradient"]) < 5e-5
    assert np.mean(numbers["loss"]) == pytest.approx(case.settings["loss"], rel=5e-5)
    np.testing.assert_array_equal(numbers["time"], case.times)


@pytest.mark.parametrize("name", CASES)
def test_stored_predictions_give_the_gradient(name):
    case = golden.load_case("mvdream", name)
    texts = _texts(case)
    with jax.enable_x64(True):
        state = np.asarray(add_noise(golden.schedule(), case.latents, case.noise, case.times))
        answers = [
            Answer(case["epsilon_text"], case.times, texts.positive, state),
            Answer(case["epsilon_negative"], case.times, texts.negative, state),
        ]
        gradient, _ = _iteration(case, golden.stored_denoiser(answers), texts)
    assert gradient.dtype == np.float64
    assert golden.largest_difference(gradient, case["gradient"]) < 5e-6


def test_all_views_have_one_time():
    loss = MVDream()
    drawn = [loss.draw(golden.draw_keys(k), Progress(8000, 9000), (8, 2, 2, 4)).per_view for k in range(9)]
    times = np.stack([each["times"] for each in drawn])
    assert times.shape == (9, 8) and np.all(times == times[:, :1]) and len(set(times[:, 0].tolist())) > 5
    assert loss.latest_time == 980 and loss.views_together == VIEWS and not loss.may_mirror


def test_groups_of_four_views_are_rescaled_apart():
    text = fakes.texts(2 * VIEWS, avoided=0)
    # Groups of different contrast, so that a deviation over all views would be that of neither.
    z = fakes.latents(2 * VIEWS) * np.repeat([1.0, 5.0], VIEWS)[:, None, None, None]
    noise, times = jnp.asarray(z[::-1].copy()), jnp.full(2 * VIEWS, 500)

    def gradient(own):
        some = text.replace(positive=text.positive[own], avoided=text.avoided[own], weights=text.weights[own])
        drawn = Draws(shared={}, per_view={"noise": noise[own], "times": times[own]})
        denoiser = fakes.smooth_denoiser(len(z[own]))
        residual, _ = golden.gradient_of(MVDream(), z[own], some, drawn, denoiser, Progress(0, 10))
        return residual * len(z[own])

    together = gradient(slice(None))
    for own in (slice(0, VIEWS), slice(VIEWS, None)):
        assert golden.largest_difference(together[own], gradient(own)) < 1e-5


def test_a_bad_share_is_named():
    with pytest.raises(UserError, match="recon_std_rescale"):
        MVDream(recon_std_rescale=-0.1)
