"""Splats as samples of a Markov chain: the paper's sum, unchanged images, and no lost splats."""

import dataclasses
import math
from decimal import Decimal, localcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.splatting.cameras import orbit_camera
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.mcmc import exploration_noise, relocate, shared_opacity
from ge3d_jax.splatting.rasterize import render

COUNT, DEAD = 40, 0.005
move = jax.jit(relocate)


def paper_sum(opacity: float, copies: int) -> tuple[float, float]:
    """Equation 9 as printed, with eighty digits: o' and s'/s."""
    with localcontext() as context:
        context.prec = 80
        o = Decimal(opacity)
        shared = 1 - (1 - o) ** (Decimal(1) / copies)
        total = Decimal(0)
        for i in range(1, copies + 1):
            for k in range(i):
                total += math.comb(i - 1, k) * (-1) ** k * shared ** (k + 1) / Decimal(k + 1).sqrt()
        return float(shared), float(o / total)


def splats(seed: int, used: int = COUNT, faint: float = 0.3) -> Gaussians:
    """Splats whose color is their index; a fraction `faint` of them is dead."""
    random = np.random.default_rng(seed)
    opacities = np.where(random.random(COUNT) < faint, 0.002, random.uniform(0.05, 0.95, COUNT))
    return Gaussians(
        positions=jnp.asarray(random.uniform(-0.4, 0.4, (COUNT, 3)), jnp.float32),
        log_scales=jnp.asarray(np.log(random.uniform(0.05, 0.15, (COUNT, 3))), jnp.float32),
        quaternions=jnp.asarray(random.normal(size=(COUNT, 4)), jnp.float32),
        opacity_logits=jnp.asarray(np.log(opacities / (1 - opacities)), jnp.float32),
        sh=jnp.broadcast_to(jnp.arange(COUNT, dtype=jnp.float32)[:, None, None], (COUNT, 1, 3)),
        mask=jnp.arange(COUNT) < used,
    )


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 20, 51])
def test_shared_opacities_equal_the_papers_sum(copies):
    opacities = [0.006, 0.1, 0.5, 0.9, 0.99, 0.9999]
    shared, factor = shared_opacity(jnp.asarray(opacities), jnp.full(len(opacities), copies))
    expected = [paper_sum(float(np.float32(opacity)), copies) for opacity in opacities]
    np.testing.assert_allclose(shared, [one for one, _ in expected], rtol=2e-4)
    np.testing.assert_allclose(factor, [other for _, other in expected], rtol=2e-4)


def test_many_copies_stay_finite():
    shared, factor = shared_opacity(jnp.asarray([0.005, 0.999999]), jnp.asarray([5000, 5000]))
    assert np.isfinite(shared).all() and np.isfinite(factor).all()
    assert (np.asarray(shared) > 0).all() and (np.asarray(factor) > 0).all()


def test_the_image_stays_nearly_the_same():
    gaussians = splats(0, used=24)
    colors = np.random.default_rng(1).uniform(-1.5, 1.5, (COUNT, 1, 3))
    gaussians = dataclasses.replace(gaussians, sh=jnp.asarray(colors, jnp.float32))
    camera = orbit_camera(azimuth=0.3, polar=1.2, radius=3.0, fov=0.5, size=32)
    show = jax.jit(partial(render, camera=camera, background=jnp.ones(3), buffer_capacity=2048))
    after, _, report = move(jax.random.key(3), gaussians, {}, dead_opacity=DEAD, growth=0.3, limit=COUNT)
    assert int(report.relocated) > 3 and int(report.added) == 7
    # For comparison, uncorrected copies: the same positions, with the opacity and scale of their source.
    source = np.asarray(
        [np.flatnonzero((np.asarray(gaussians.positions) == place).all(1))[0] for place in after.positions]
    )
    plain = dataclasses.replace(
        after, opacity_logits=gaussians.opacity_logits[source], log_scales=gaussians.log_scales[source]
    )
    before = np.asarray(show(gaussians).rgb)
    corrected, uncorrected = (np.abs(np.asarray(show(g).rgb) - before).mean() for g in (after, plain))
    assert np.abs(before - 1).mean() > 0.1
    assert corrected < 0.01 and corrected < 0.2 * uncorrected


def test_light_along_a_line_is_unchanged():
    # 1 − (1 − o'·G(x/s'))^N has the height and area of o·G(x/s), summed numerically.
    x = np.linspace(-30, 30, 200_001)
    for opacity, copies in ((0.05, 4), (0.6, 2), (0.95, 9)):
        shared, factor = (float(v[0]) for v in shared_opacity(jnp.asarray([opacity]), jnp.asarray([copies])))
        hidden = 1 - (1 - shared * np.exp(-0.5 * (x / factor) ** 2)) ** copies
        np.testing.assert_allclose(hidden.max(), opacity, rtol=1e-5)
        np.testing.assert_allclose(hidden.sum() * (x[1] - x[0]), opacity * math.sqrt(2 * math.pi), rtol=1e-4)


def test_fifty_rounds_lose_and_duplicate_nothing():
    random = np.random.default_rng(4)
    gaussians = splats(5, used=12)
    number = np.arange(COUNT)
    for round_number in range(50):
        logits = jnp.asarray(random.uniform(-7.0, 3.0, COUNT), jnp.float32)
        tags = jnp.asarray(number, jnp.float32)
        before = dataclasses.replace(
            gaussians,
            opacity_logits=logits,
            sh=jnp.broadcast_to(tags[:, None, None], (COUNT, 1, 3)),
            log_scales=jnp.full((COUNT, 3), -2.0),
        )
        moments = {
            "mu": tags + 1,
            "nu": jnp.tile(tags[:, None] + 1, (1, 3)),
        }
        gaussians, carried, report = move(
            jax.random.key(round_number), before, moments, dead_opacity=DEAD, growth=0.1, limit=35
        )
        # NumPy arrays, because JAX would recompile each check for each number of splats.
        kept = jax.tree.map(np.asarray, before)
        shown, carried = jax.tree.map(np.asarray, (gaussians, carried))
        used, lives = kept.mask, kept.mask & np.asarray(jax.nn.sigmoid(logits) > DEAD)
        source, mask = shown.sh[:, 0, 0].astype(int), shown.mask
        # Live splats stay; dead and new ones move to a live one; the number grows up to the limit.
        assert (source[lives] == number[lives]).all()
        assert lives[source[mask]].all()
        assert mask.sum() == min(35, used.sum() + round(0.1 * used.sum()))
        assert (mask | ~used).all()
        assert int(report.relocated) == (used & ~lives).sum()
        assert int(report.added) == mask.sum() - used.sum()
        copies = np.bincount(source[mask], minlength=COUNT)[source]
        np.testing.assert_array_equal(shown.positions[mask], kept.positions[source[mask]])
        alone, shared = mask & (copies == 1), mask & (copies > 1)
        opacity, old = (np.asarray(jax.nn.sigmoid(g.opacity_logits), np.float64) for g in (gaussians, before))
        np.testing.assert_array_equal(shown.opacity_logits[alone], kept.opacity_logits[alone])
        expected = np.maximum(1 - (1 - old[source]) ** (1 / copies.clip(1)), 1.01 * DEAD)
        np.testing.assert_allclose(opacity[shared], expected[shared], rtol=1e-3)
        np.testing.assert_array_equal(shown.log_scales[alone], -2.0)
        assert (shown.log_scales[shared] < -2.0).all()
        # Moments follow their splats, and restart for changed ones.
        np.testing.assert_array_equal(carried["mu"][mask], np.where(alone, number + 1, 0)[mask])
        np.testing.assert_array_equal(carried["nu"][mask, 2], np.where(alone, number + 1, 0)[mask])
    assert mask.sum() == 35


@pytest.mark.parametrize("dead_opacity", [1e-3, DEAD, 0.05, 0.9])
def test_none_is_dead_right_after(dead_opacity):
    random = np.random.default_rng(7)
    for round_number in range(10):
        # Barely live, or dead: all splats at a shared position are as faint as allowed.
        logit = math.log(dead_opacity / (1 - dead_opacity))
        logits = logit + random.choice([-1.0, 1e-3, 0.1], COUNT)
        before = dataclasses.replace(splats(8), opacity_logits=jnp.asarray(logits, jnp.float32))
        after, _, report = move(
            jax.random.key(round_number), before, {}, dead_opacity=dead_opacity, growth=0.0, limit=COUNT
        )
        assert int(report.relocated) > 3
        opacities = np.asarray(jax.nn.sigmoid(after.opacity_logits))
        assert (opacities > np.float32(dead_opacity)).all() and opacities.max() < dead_opacity * 1.11
        _, _, again = move(
            jax.random.key(round_number), after, {}, dead_opacity=dead_opacity, growth=0.0, limit=COUNT
        )
        assert int(again.relocated) == 0


def test_company_for_an_opaque_splat_stays_finite():
    logits = jnp.full(COUNT, -9.0).at[3].set(60.0)
    before = dataclasses.replace(splats(8), opacity_logits=logits)
    after, _, _ = move(jax.random.key(0), before, {}, dead_opacity=DEAD, growth=0.0, limit=COUNT)
    assert set(np.asarray(after.sh[:, 0, 0])) == {3.0}
    assert np.isfinite(after.opacity_logits).all() and np.isfinite(after.log_scales).all()


def test_places_are_drawn_by_opacity():
    count = 20_000
    opacity = np.full(count, 1e-4)
    opacity[:3] = 0.2, 0.6, 0.1
    gaussians = Gaussians(
        positions=jnp.zeros((count, 3)),
        log_scales=jnp.zeros((count, 3)),
        quaternions=jnp.ones((count, 4)),
        opacity_logits=jnp.asarray(np.log(opacity / (1 - opacity)), jnp.float32),
        sh=jnp.tile(jnp.arange(count, dtype=jnp.float32)[:, None, None], (1, 1, 3)),
        mask=jnp.ones(count, bool),
    )
    after, _, _ = move(jax.random.key(0), gaussians, {}, dead_opacity=DEAD, growth=0.0, limit=count)
    source = np.asarray(after.sh[:, 0, 0]).astype(int)
    shares = np.bincount(source, minlength=3) / count
    np.testing.assert_allclose(shares[:3], opacity[:3] / 0.9, atol=0.02)
    assert shares[3:].sum() == 0


def test_without_live_splats_nothing_happens():
    gaussians = dataclasses.replace(splats(6, used=30), opacity_logits=jnp.full(COUNT, -9.0))
    after, carried, report = move(
        jax.random.key(0), gaussians, {"mu": jnp.ones(COUNT)}, dead_opacity=DEAD, growth=0.5, limit=COUNT
    )
    jax.tree.map(np.testing.assert_array_equal, after, gaussians)
    assert (int(report.relocated), int(report.added)) == (0, 0) and np.all(carried["mu"] == 1)


def test_noise_has_the_splats_own_shape_and_spares_the_visible():
    count = 8000
    scales, quaternion = np.array([0.5, 0.2, 0.05]), np.array([0.3, -0.5, 0.7, 0.2])
    opacity = 0.01
    gaussians = Gaussians(
        positions=jnp.zeros((count, 3)),
        log_scales=jnp.tile(jnp.log(jnp.asarray(scales, jnp.float32)), (count, 1)),
        quaternions=jnp.tile(jnp.asarray(quaternion, jnp.float32), (count, 1)),
        opacity_logits=jnp.full(count, math.log(opacity / (1 - opacity))),
        sh=jnp.zeros((count, 1, 3)),
        mask=jnp.arange(count) < count - 1,
    )
    noise = np.asarray(exploration_noise(jax.random.key(0), gaussians))
    assert not noise[-1].any()
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + 2 * w * cross + 2 * cross @ cross  # Rodrigues
    covariance = rotation @ np.diag(scales**2) @ rotation.T
    share = 1 / (1 + math.exp(100 * (opacity - 0.005)))
    expected = share**2 * covariance @ covariance
    np.testing.assert_allclose(np.cov(noise[:-1].T), expected, atol=0.05 * np.abs(expected).max())
    opaque = dataclasses.replace(gaussians, opacity_logits=jnp.full(count, 2.0))
    assert np.abs(exploration_noise(jax.random.key(0), opaque)).max() < 1e-6
