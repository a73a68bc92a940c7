"""GE3D with an inversion that is made up for: what is not asked for stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.prompts import embed_prompt, view_texts
from tests.guidance import golden, smooth


def _trajectories(world, text, **settings):
    loss = GE3D(**settings)
    drawn = world.drawn(loss, 5000)
    active = int(drawn.shared["active"])
    return loss.trajectories(world.latents, text, drawn, world.denoiser), drawn, active


@pytest.mark.parametrize("has_perp_neg", [False, True])
def test_an_edit_to_the_source_changes_nothing_with_direct(has_perp_neg):
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=has_perp_neg)
        text = dataclasses.replace(world.text, source=world.text)
        (noised, denoised), _, _ = _trajectories(world, text, inversion="direct")
        np.testing.assert_allclose(denoised, noised, atol=1e-12)
        (noised, denoised), _, _ = _trajectories(world, text, inversion="plain")
        assert np.abs(np.asarray(denoised - noised)).max() > 0.1


def test_direct_takes_off_what_the_source_misses():
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=False)
        other = dataclasses.replace(world.text, positive=-world.text.positive)
        text = dataclasses.replace(world.text, source=other)
        (noised, denoised), drawn, active = _trajectories(world, text, inversion="direct")
        times = np.asarray(drawn.shared["node_times"])
        alphas = np.asarray(world.schedule.alphas_cumprod, np.float64)
        loss = GE3D()

        def step(x, asked, start, end):
            epsilon = world.denoiser.branches(
                jnp.asarray(x), jnp.asarray(start), asked, text.negative
            ).guided(loss.scale)
            clean = (x - np.sqrt(1 - alphas[start]) * epsilon) / np.sqrt(alphas[start])
            return np.sqrt(alphas[end]) * clean + np.sqrt(1 - alphas[end]) * epsilon

        x = np.asarray(noised[active])
        for i in range(active - 1, -1, -1):
            start, end = times[i + 1], times[i]
            missed = np.asarray(noised[i]) - step(np.asarray(noised[i + 1]), other, start, end)
            x = step(x, text, start, end) + missed
            np.testing.assert_allclose(denoised[i], x, atol=1e-6)


def test_npi_leads_away_from_the_source():
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=False)
        text = dataclasses.replace(world.text, source=world.text)
        (_, first), _, _ = _trajectories(world, text, inversion="npi", scale=7.5)
        (_, second), _, _ = _trajectories(world, text, inversion="npi", scale=1.0)
        # Both predictions are one, so that their difference counts nothing.
        np.testing.assert_allclose(first, second, atol=1e-9)


def test_without_a_source_the_noising_prompt_is_it():
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=False)
        same = jnp.broadcast_to(world.text.negative, world.text.positive.shape)
        text = dataclasses.replace(world.text, positive=same)
        (noised, denoised), _, _ = _trajectories(world, text, inversion="direct")
        np.testing.assert_allclose(denoised, noised, atol=1e-12)


def _residual(world, loss, text, drawn, latents, source=None):
    """What the loss hands to the latents, and the loss of each view."""
    seen = dataclasses.replace(golden.see(np.asarray(latents)), source=source)

    def scalar(z):
        views = dataclasses.replace(seen, latents=z)
        return loss((), views, text, drawn, world.denoiser, world.progress(5000))

    gradient, numbers = jax.jit(jax.grad(scalar, has_aux=True))(seen.latents)
    return np.asarray(gradient), np.asarray(numbers["loss"])


def _other_text(world):
    """Another prompt, with other weights of the views to stay away from."""
    text = world.text
    return dataclasses.replace(text, positive=-text.positive, avoided=-text.avoided, weights=0.3 * text.weights)


@pytest.mark.parametrize("has_perp_neg", [False, True])
def test_delta_takes_off_what_the_untouched_source_misses_by_its_own_prompt(has_perp_neg):
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=has_perp_neg)
        target, before = world.text, _other_text(world)
        source = 0.5 * world.latents[::-1] + 0.2
        loss = GE3D(inversion="delta", strength=0.3)
        drawn = world.drawn(loss, 5000)
        both = dataclasses.replace(target, source=before)
        got, losses = _residual(world, loss, both, drawn, world.latents, source)
        # Each of them by itself, up and down along its own prompt.
        plain = dataclasses.replace(loss, inversion="plain")
        of_target, of_source = (
            _residual(world, plain, dataclasses.replace(text, source=text), drawn, z)[0]
            for text, z in ((target, world.latents), (before, source))
        )
        assert np.abs(of_source).max() > 0.01
        np.testing.assert_allclose(got, of_target - of_source, atol=1e-10)
        assert losses.shape == (2,) and np.all(losses > 0)


@pytest.mark.parametrize("has_perp_neg", [False, True])
def test_delta_asks_for_nothing_where_nothing_is_to_change(has_perp_neg):
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=has_perp_neg)
        same = dataclasses.replace(world.text, source=world.text)
        loss = GE3D(inversion="delta")
        drawn = world.drawn(loss, 5000)
        gradient, losses = _residual(world, loss, same, drawn, world.latents, world.latents)
        np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
        np.testing.assert_allclose(losses, 0.0, atol=1e-12)
        other = dataclasses.replace(world.text, source=_other_text(world))
        for text, source in ((same, world.latents + 0.1), (other, world.latents)):
            gradient, losses = _residual(world, loss, text, drawn, world.latents, source)
            assert np.abs(gradient).max() > 0.01 and losses.min() > 0.01


def test_delta_needs_the_source():
    world = smooth.world(has_perp_neg=False)
    told = dataclasses.replace(world.text, source=world.text)
    loss = GE3D(inversion="delta")
    assert loss.needs_source_views
    assert not any(GE3D(inversion=name).needs_source_views for name in ("plain", "npi", "direct"))
    drawn = world.drawn(loss, 5000)
    for text, source in ((told, None), (world.text, world.latents)):
        with pytest.raises(ValueError, match="there is none"):
            loss.trajectories(world.latents, text, drawn, world.denoiser, source)


def test_texts_of_the_source_and_a_setting_that_does_not_exist():
    def encode(texts):
        return jnp.stack([jnp.full((2, 3), float(len(text))) for text in texts])

    embeddings = embed_prompt(encode, "a red pig", negative_prompt="", source_prompt="a red cat now")
    text = view_texts(embeddings, jnp.zeros(2), use_perp_neg=False)
    np.testing.assert_array_equal(text.source.positive - text.positive, 4.0)
    assert text.source.source is None
    with pytest.raises(UserError, match="plain, npi, direct, delta"):
        GE3D(inversion="exact")
