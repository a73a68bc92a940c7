"""GE3D with corrections of the inversion: whatever the edit does not ask for is preserved."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.guidance.base import DrawKeys, Progress
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.prompts import embed_prompt, view_texts
from ge3d_jax.guidance.trajectories import INVERSIONS, Nodes
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


@pytest.mark.parametrize("active", [1, 2, 3])
def test_direct_if_several_corrects_several_jumps_but_not_a_single_one(active):
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=False)
        nodes = Nodes(count=3)
        times = jnp.minimum(jnp.arange(4), active) * 70
        shared = {"node_times": times.astype(jnp.int32), "active": jnp.int32(active)}
        drawn = dataclasses.replace(world.drawn(GE3D(nodes=nodes), 5000), shared=shared)
        found, asked = {}, {}
        for inversion in ("plain", "direct", "direct_if_several"):
            loss = GE3D(inversion=inversion, nodes=nodes)
            times = []
            walk = functools.partial(loss.trajectories, world.latents, world.text)
            _, denoised = jax.jit(functools.partial(walk, denoiser=world.counting(times)))(drawn)
            found[inversion] = np.asarray(denoised)
            jax.effects_barrier()
            asked[inversion] = len(times)
        same, other = ("direct", "plain") if active > 1 else ("plain", "direct")
        np.testing.assert_allclose(found["direct_if_several"], found[same], atol=1e-12)
        assert np.abs(found["direct_if_several"] - found[other]).max() > 0.01
        assert asked["direct_if_several"] == asked[same] != asked[other]


def test_npi_leads_away_from_the_source():
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=False)
        text = dataclasses.replace(world.text, source=world.text)
        (_, first), _, _ = _trajectories(world, text, inversion="npi", scale=7.5)
        (_, second), _, _ = _trajectories(world, text, inversion="npi", scale=1.0)
        # Both predictions are equal, so that their difference vanishes.
        np.testing.assert_allclose(first, second, atol=1e-9)


@pytest.mark.parametrize("noising_prompt", ["negative", "empty"])
def test_without_a_source_the_noising_prompt_is_it(noising_prompt):
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=False)
        same = jnp.broadcast_to(getattr(world.text, noising_prompt), world.text.positive.shape)
        text = dataclasses.replace(world.text, positive=same)
        settings = {"inversion": "direct", "noising_prompt": noising_prompt}
        (noised, denoised), _, _ = _trajectories(world, text, **settings)
        np.testing.assert_allclose(denoised, noised, atol=1e-12)


def test_npi_without_a_source_leads_away_from_the_noising_prompt():
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=False)
        same = jnp.broadcast_to(world.text.empty, world.text.positive.shape)
        text = dataclasses.replace(world.text, positive=same)
        settings = {"inversion": "npi", "noising_prompt": "empty"}
        (_, first), _, _ = _trajectories(world, text, **settings, scale=7.5)
        (_, second), _, _ = _trajectories(world, text, **settings, scale=1.0)
        np.testing.assert_allclose(first, second, atol=1e-9)


def _residual(world, loss, text, drawn, latents, source=None):
    """The loss's residual at the latents, and the loss of each view."""
    seen = dataclasses.replace(golden.see(np.asarray(latents)), source=source)

    def scalar(z):
        views = dataclasses.replace(seen, latents=z)
        return loss((), views, text, drawn, world.denoiser, world.progress(5000))

    gradient, numbers = jax.jit(jax.grad(scalar, has_aux=True))(seen.latents)
    return np.asarray(gradient), np.asarray(numbers["loss"])


def _other_text(world):
    """A different prompt, with different Perp-Neg weights."""
    text = world.text
    return dataclasses.replace(
        text, positive=-text.positive, avoided=-text.avoided, weights=0.3 * text.weights
    )


@pytest.mark.parametrize(("has_perp_neg", "noising_prompt"), [(False, "negative"), (True, "empty")])
def test_delta_takes_off_what_is_asked_of_the_untouched_source(has_perp_neg, noising_prompt):
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=has_perp_neg)
        target, before = world.text, _other_text(world)
        source = 0.5 * world.latents[::-1] + 0.2
        loss = GE3D(inversion="delta", strength=0.3, noising_prompt=noising_prompt)
        drawn = world.drawn(loss, 5000)
        both = dataclasses.replace(target, source=before)
        got, losses = _residual(world, loss, both, drawn, world.latents, source)
        # Each of them separately, in an ordinary iteration.
        plain = dataclasses.replace(loss, inversion="plain")
        of_target, of_source = (
            _residual(world, plain, text, drawn, z)[0]
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
        # Exactly zero, because Adam would turn rounding errors into steps.
        np.testing.assert_array_equal(gradient, 0.0)
        np.testing.assert_array_equal(losses, 0.0)
        other = dataclasses.replace(world.text, source=_other_text(world))
        for text, source in ((same, world.latents + 0.1), (other, world.latents)):
            gradient, losses = _residual(world, loss, text, drawn, world.latents, source)
            assert np.abs(gradient).max() > 0.01 and losses.min() > 0.01


def test_delta_needs_the_source():
    world = smooth.world(has_perp_neg=False)
    told = dataclasses.replace(world.text, source=world.text)
    loss = GE3D(inversion="delta")
    assert loss.needs_source_views
    assert not any(GE3D(inversion=name).needs_source_views for name in INVERSIONS if name != "delta")
    drawn = world.drawn(loss, 5000)
    for text, source in ((told, None), (world.text, world.latents)):
        with pytest.raises(UserError, match="but this run has none"):
            loss.trajectories(world.latents, text, drawn, world.denoiser, source)


def test_texts_of_the_source_and_a_setting_that_does_not_exist():
    def encode(texts):
        return jnp.stack([jnp.full((2, 3), float(len(text))) for text in texts])

    embeddings = embed_prompt(encode, "a red pig", negative_prompt="", source_prompt="a red cat now")
    text = view_texts(embeddings, jnp.zeros(2), use_perp_neg=False)
    np.testing.assert_array_equal(text.source.positive - text.positive, 4.0)
    assert text.source.source is None
    with pytest.raises(UserError, match="plain, npi, direct, direct_if_several, delta"):
        GE3D(inversion="exact")


# A world of things with two shapes and two colors: one half of the picture's rows shows each.
_SPREAD, _EDGE = 0.3, 4
_THINGS = np.random.default_rng(3).normal(size=(2, 2, _EDGE // 2, _EDGE, 4))
_PICTURES = np.stack([np.concatenate([_THINGS[0][i], _THINGS[1][j]]) for i in range(2) for j in range(2)])


def _knows_four_things(model, x, t, text):
    """The exact ε for pictures around four centers; a text's first number selects one, or any if below 0."""
    alpha = jnp.reshape(model[jnp.asarray(t)], (-1, 1, 1, 1, 1))
    variance = alpha * _SPREAD**2 + 1 - alpha
    away = x[:, None] - jnp.sqrt(alpha) * _PICTURES
    near = jax.nn.softmax(-0.5 * jnp.sum(away**2 / variance, axis=(2, 3, 4)))
    which = text[:, 0, 0]
    asked = jnp.where(which[:, None] < 0, near, jax.nn.one_hot(which.astype(jnp.int32), 4))
    return jnp.einsum("bk,bkhwc->bhwc", asked, jnp.sqrt(1 - alpha) * away / variance)


def _edited(inversion, iterations=60):
    """Edit the first thing to the second, of the same shape: errors of shape and color, and ‖r‖."""
    schedule = golden.schedule()
    denoiser = Denoiser(schedule.alphas_cumprod, schedule, 1, _knows_four_things)
    says = {
        name: jnp.full((1, 1, 1), value) for name, value in (("any", -1.0), ("source", 0.0), ("target", 1.0))
    }
    none = {"avoided": jnp.zeros((1, 0, 1, 1)), "weights": jnp.zeros((1, 0))}
    nothing = {name: says["any"][0] for name in ("negative", "empty", "plain")}
    before, text = (ViewTexts(positive=says[name], **none, **nothing) for name in ("source", "target"))
    text = text if inversion == "plain" else dataclasses.replace(text, source=before)
    nodes = Nodes(count=5, jump_max=(120, 60), jump_min=(90, 40), max_step=(600, 300))
    loss = GE3D(inversion=inversion, strength=0.3, nodes=nodes)
    own = _SPREAD * np.random.default_rng(4).normal(size=_PICTURES[:1].shape)
    source = jnp.asarray(_PICTURES[:1] + own, jnp.float32)
    seen = golden.see(np.asarray(source))

    def step(z, iteration):
        progress = Progress(iteration, iterations)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), iteration), 3)
        drawn = loss.draw(DrawKeys(*keys), progress, z.shape)

        def scalar(z):
            return loss(
                (), dataclasses.replace(seen, latents=z, source=source), text, drawn, denoiser, progress
            )[0]

        residual = jax.grad(scalar)(z)
        return z - residual, jnp.linalg.norm(residual)

    z, norms = jax.jit(lambda z: jax.lax.scan(step, z, jnp.arange(iterations)))(source)
    wanted, half = _PICTURES[1] + own, _EDGE // 2
    off = np.asarray(z) - wanted
    way = np.linalg.norm(_PICTURES[1] - _PICTURES[0])
    return np.linalg.norm(off[:, :half]) / way, np.linalg.norm(off[:, half:]) / way, norms


def test_delta_ends_at_the_edit_and_direct_never_ends():
    """Direct inversion's residual does not shrink with the edit, because the source prompt fits ever less."""
    shape, color, norms = _edited("delta")
    assert shape < 0.02 and color < 0.2 and norms[-1] < 0.1 * norms[0]
    # An ordinary iteration also converges, but loses the details of the shape.
    forgotten, color, norms = _edited("plain")
    assert forgotten > 0.1 and color < 0.3 and norms[-1] < 0.2 * norms[0]
    _, far, norms = _edited("direct")
    assert far > 10 and norms[-1] > 0.5 * norms[0]
