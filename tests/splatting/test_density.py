"""Density control: no lost or duplicate splats, moments follow splats, full buffers serve by gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.splatting.density import (
    DensityStatistics,
    accumulate,
    densify,
    empty_statistics,
    gather_entries,
    mean_gradients,
    reset_opacity,
)
from ge3d_jax.splatting.gaussians import Gaussians

COUNT = 20
THRESHOLD, CLONE_SCALE, PRUNE_OPACITY, PRUNE_SCALE = 1.0, 0.1, 0.05, 0.5
control = jax.jit(densify)


def random_splats(random: np.random.Generator, fill: float) -> tuple[Gaussians, DensityStatistics, dict]:
    """Splats whose color and moments encode their index."""
    tags = np.arange(COUNT, dtype=np.float32) + 1
    gaussians = Gaussians(
        positions=random.normal(size=(COUNT, 3)),
        log_scales=np.log(random.uniform(0.01, 1.0, size=(COUNT, 1)) * np.array([[1.0, 0.5, 0.2]])),
        quaternions=random.normal(size=(COUNT, 4)),
        opacity_logits=random.uniform(-4.0, 2.0, size=COUNT),
        sh=np.broadcast_to(tags[:, None, None], (COUNT, 1, 3)),
        mask=random.uniform(size=COUNT) < fill,
    )
    gaussians = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, bool if leaf.dtype == bool else jnp.float32), gaussians
    )
    statistics = DensityStatistics(
        gradient_sum=jnp.asarray(random.uniform(0.0, 4.0, COUNT), jnp.float32),
        view_count=jnp.asarray(random.integers(0, 4, COUNT), jnp.int32),
    )
    moments = {
        "mu": {"positions": jnp.tile(tags[:, None], (1, 3)), "opacity_logits": tags},
    }
    return gaussians, statistics, moments


def expected_by_loop(gaussians: Gaussians, statistics: DensityStatistics):
    """For every splat: the number of remaining copies, and whether they are fresh (moments cleared)."""
    gradients = np.asarray(statistics.gradient_sum) / np.maximum(np.asarray(statistics.view_count), 1)
    largest = np.exp(np.asarray(gaussians.log_scales)).max(axis=1)
    opacities = 1 / (1 + np.exp(-np.asarray(gaussians.opacity_logits)))
    copies, halves, wanting = {}, set(), []
    for i in range(COUNT):
        wants, is_split = gradients[i] >= THRESHOLD, largest[i] > CLONE_SCALE
        if not gaussians.mask[i] or opacities[i] < PRUNE_OPACITY:
            continue
        if largest[i] > PRUNE_SCALE and not (wants and is_split):
            continue
        copies[i] = 1
        if wants:
            wanting.append((-gradients[i], i))
    room = COUNT - len(copies)
    served = [i for _, i in sorted(wanting)[:room]]
    for i in served:
        copies[i] = 2
        if largest[i] > CLONE_SCALE:
            halves.add(i)
    for i in list(copies):
        if largest[i] / (1.6 if i in halves else 1.0) > PRUNE_SCALE:
            del copies[i]
    return copies, halves, len(wanting) - len(served)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), fill=st.sampled_from([0.2, 0.6, 0.9, 1.0]))
def test_control_equals_a_loop(seed, fill):
    gaussians, statistics, moments = random_splats(np.random.default_rng(seed), fill)
    after, carried, _, report = control(
        jax.random.key(seed % 1000),
        gaussians,
        statistics,
        moments,
        gradient_threshold=THRESHOLD,
        clone_scale=CLONE_SCALE,
        prune_opacity=PRUNE_OPACITY,
        prune_scale=PRUNE_SCALE,
    )
    # NumPy arrays, because the checks below access many small values.
    gaussians, statistics, after, carried, report = jax.tree.map(
        np.asarray, (gaussians, statistics, after, carried, report)
    )
    copies, halves, not_served = expected_by_loop(gaussians, statistics)
    tags = after.sh[:, 0, 0].astype(int) - 1
    found = {i: np.flatnonzero(after.mask & (tags == i)) for i in range(COUNT)}
    assert {i: len(where) for i, where in found.items() if len(where)} == copies
    assert int(report.not_served) == not_served
    served_clones = [i for i, number in copies.items() if number == 2 and i not in halves]
    assert int(report.cloned) >= len(served_clones) and int(report.split) == len(halves)
    before = int(gaussians.mask.sum())
    grown = before + int(report.cloned) + int(report.split) - int(report.pruned)
    assert int(after.mask.sum()) == grown

    for i, number in copies.items():
        fresh = np.asarray(carried["mu"]["opacity_logits"])[found[i]] == 0.0
        np.testing.assert_array_equal(np.asarray(carried["mu"]["positions"])[found[i][~fresh]], i + 1.0)
        for where in found[i]:
            for field in ("quaternions", "opacity_logits", "sh"):
                np.testing.assert_array_equal(getattr(after, field)[where], getattr(gaussians, field)[i])
            shrink = np.log(1.6) if i in halves else 0.0
            np.testing.assert_allclose(after.log_scales[where], gaussians.log_scales[i] - shrink, atol=1e-6)
            moved = np.any(np.asarray(after.positions[where] != gaussians.positions[i]))
            assert moved == (i in halves)
        assert fresh.sum() == (2 if i in halves else number - 1)


def test_a_full_buffer_serves_the_largest_gradients():
    gaussians, _, moments = random_splats(np.random.default_rng(0), 1.0)
    gaussians = dataclasses.replace(
        gaussians,
        log_scales=jnp.full((COUNT, 3), -5.0),
        opacity_logits=jnp.zeros(COUNT),
        mask=jnp.arange(COUNT) < COUNT - 2,
    )
    statistics = DensityStatistics(jnp.arange(COUNT, dtype=jnp.float32), jnp.ones(COUNT))
    after, _, _, report = control(
        jax.random.key(0),
        gaussians,
        statistics,
        moments,
        gradient_threshold=3.0,
        clone_scale=0.1,
        prune_opacity=0.01,
    )
    assert (int(report.cloned), int(report.split), int(report.pruned)) == (2, 0, 0)
    assert int(report.not_served) == COUNT - 2 - 3 - 2
    assert bool(jnp.all(after.mask))
    assert sorted(np.asarray(after.sh[-2:, 0, 0]).astype(int) - 1) == [COUNT - 4, COUNT - 3]


def test_halves_are_drawn_from_their_parent():
    count = 4000
    scales = np.array([0.5, 0.2, 0.05])
    quaternion = np.array([0.3, -0.5, 0.7, 0.2])
    gaussians = Gaussians(
        positions=jnp.zeros((2 * count, 3)),
        log_scales=jnp.tile(jnp.log(jnp.asarray(scales, jnp.float32)), (2 * count, 1)),
        quaternions=jnp.tile(jnp.asarray(quaternion, jnp.float32), (2 * count, 1)),
        opacity_logits=jnp.zeros(2 * count),
        sh=jnp.zeros((2 * count, 1, 3)),
        mask=jnp.arange(2 * count) < count,
    )
    statistics = DensityStatistics(jnp.ones(2 * count), jnp.ones(2 * count))
    after, _, _, report = control(
        jax.random.key(1),
        gaussians,
        statistics,
        {},
        gradient_threshold=1.0,
        clone_scale=0.1,
        prune_opacity=0.01,
    )
    assert int(report.split) == count and bool(jnp.all(after.mask))
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + 2 * w * cross + 2 * cross @ cross  # Rodrigues
    local = np.asarray(after.positions) @ rotation / scales
    np.testing.assert_allclose(np.cov(local.T), np.eye(3), atol=0.06)
    np.testing.assert_allclose(local.mean(axis=0), 0.0, atol=0.05)


def test_opacity_reset_lowers_opacities_and_clears_only_their_moments():
    gaussians, _, moments = random_splats(np.random.default_rng(1), 1.0)
    lowered, cleared = jax.jit(reset_opacity)(gaussians, moments, ceiling=0.1)
    before, after = (jax.nn.sigmoid(g.opacity_logits) for g in (gaussians, lowered))
    np.testing.assert_allclose(after, np.minimum(before, 0.1), rtol=1e-5)
    assert not np.any(cleared["mu"]["opacity_logits"])
    np.testing.assert_array_equal(cleared["mu"]["positions"], moments["mu"]["positions"])


def test_statistics_equal_a_loop_over_views():
    random = np.random.default_rng(2)
    statistics = empty_statistics(5)
    sums, counts = np.zeros(5), np.zeros(5)
    for _ in range(2):
        gradients = random.normal(size=(3, 5, 2)).astype(np.float32)
        seen = random.uniform(size=(3, 5)) < 0.6
        seen[:, 0] = False
        statistics = accumulate(statistics, jnp.asarray(gradients), jnp.asarray(seen), (64, 32))
        for view in range(3):
            for splat in range(5):
                if seen[view, splat]:
                    sums[splat] += np.hypot(gradients[view, splat, 0] * 32, gradients[view, splat, 1] * 16)
                    counts[splat] += 1
    np.testing.assert_allclose(statistics.gradient_sum, sums, rtol=1e-5)
    np.testing.assert_allclose(mean_gradients(statistics), sums / np.maximum(counts, 1), rtol=1e-5)
    assert float(mean_gradients(statistics)[0]) == 0.0


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 2)])
def test_gather_moves_leaves_of_any_rank(shape):
    leaf = jnp.arange(float(np.prod(shape))).reshape(shape) + 1
    moved = gather_entries({"leaf": leaf}, jnp.array([2, 1, 1, 0]), jnp.array([0, 0, 1, 0], bool))
    np.testing.assert_array_equal(
        moved["leaf"], jnp.stack([leaf[2], leaf[1], jnp.zeros_like(leaf[0]), leaf[0]])
    )
