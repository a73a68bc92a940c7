"""Properties of every available loss, without a network; tests/training covers devices and seeds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.toybox import model_folder
from ge3d_jax.training.presets import PRESETS, configured
from tests.guidance import fakes, golden

PROGRESS = Progress(30, 100)
EVERY_LOSS = pytest.mark.parametrize("kind", LOSSES)
PERP_NEG = pytest.mark.parametrize("avoided", [0, 2])


@functools.cache
def _model():
    # Only losses with their own network use the model.
    return load_model(model_folder("toybox64"))


@functools.partial(jax.jit, static_argnames="loss")
def _gradient(latents, seen, text, drawn, denoiser, learned, progress, *, loss):
    def scalar(z):
        return loss(learned, dataclasses.replace(seen, latents=z), text, drawn, denoiser, progress)

    return jax.grad(scalar, has_aux=True)(latents)


def _setting(kind):
    """The loss, the number of views, their latents, the random draws and the learned parameters."""
    loss = LOSSES[kind]()
    views = max(2, loss.views_together)
    z = fakes.latents(views)
    drawn = jax.jit(lambda keys: loss.draw(keys, PROGRESS, z.shape))(golden.draw_keys(3))
    return loss, views, z, drawn, loss.begin(jax.random.key(0), _model())


@EVERY_LOSS
@PERP_NEG
def test_gradient_and_numbers_are_finite_and_no_time_is_too_late(kind, avoided):
    loss, views, z, drawn, learned = _setting(kind)
    assert jax.tree.all(jax.tree.map(lambda array: array.shape[0] == views, drawn.per_view))
    text = fakes.texts(views, avoided=avoided)
    # It returns NaN for times that are too late.
    denoiser = fakes.smooth_denoiser(views, latest_time=loss.latest_time)
    seen = golden.see(z)
    gradient, numbers = _gradient(seen.latents, seen, text, drawn, denoiser, learned, PROGRESS, loss=loss)
    assert gradient.shape == z.shape and np.all(np.isfinite(gradient)) and np.any(gradient != 0)
    assert all(np.all(np.isfinite(value)) and value.shape in ((), (views,)) for value in numbers.values())
    assert numbers["loss"].shape == (views,) and np.all(numbers["loss"] >= 0)
    assert float(numbers["gradient_norm"]) == pytest.approx(float(np.linalg.norm(gradient)), rel=1e-5)


@EVERY_LOSS
def test_a_hundred_steps_lead_to_the_picture_that_the_text_asks_for(kind):
    loss, views, _, drawn, learned = _setting(kind)
    text, start = fakes.texts(views, avoided=0), fakes.latents(views, scale=0.1)
    denoiser, picture = fakes.picture_denoiser(views, text)
    way = np.linalg.norm(picture - start)
    seen = golden.see(start)
    z = seen.latents
    for _ in range(100):
        gradient, _ = _gradient(z, seen, text, drawn, denoiser, learned, PROGRESS, loss=loss)
        # Half of the distance in total, regardless of the loss's strength.
        z = z - 0.005 * way * gradient / jnp.linalg.norm(gradient)
    assert np.linalg.norm(picture - z) < 0.8 * way


@EVERY_LOSS
def test_nan_is_left_for_the_training_step_to_see(kind):
    loss, views, z, drawn, learned = _setting(kind)
    text, seen = fakes.texts(views, avoided=0), golden.see(z)
    # All times are too late for this denoiser.
    denoiser = fakes.smooth_denoiser(views, latest_time=-1)
    gradient, _ = _gradient(seen.latents, seen, text, drawn, denoiser, learned, PROGRESS, loss=loss)
    assert np.all(np.isnan(gradient))


@EVERY_LOSS
def test_chance_is_decided_by_the_keys_alone(kind):
    loss = LOSSES[kind]()
    draw = jax.jit(lambda keys: loss.draw(keys, PROGRESS, (4, 2, 2, fakes.CHANNELS)))
    first, again, other = (draw(golden.draw_keys(k)) for k in (5, 5, 6))
    same = functools.partial(jax.tree.map, np.array_equal)
    assert jax.tree.all(same(first, again)) and not jax.tree.all(same(first, other))


@EVERY_LOSS
def test_presets_are_settings_of_a_run(kind):
    presets = LOSSES[kind].presets
    for name, settings in presets.items():
        base = name if name in PRESETS else "paper"
        config = configured(base, overrides={"guidance.kind": kind, **settings})
        assert type(config.guidance) is LOSSES[kind]
