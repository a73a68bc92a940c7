"""Density control of a whole state: fifty rounds against a loop, a growing buffer, saved and restored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.scenes.density_control import (
    density_penalty,
    explore,
    first_capacity,
    follow_schedule,
    with_capacity,
)
from ge3d_jax.scenes.start.ball import ball
from ge3d_jax.splatting.gaussians import padded
from ge3d_jax.training.checkpoints import restore_state, save_state
from ge3d_jax.training.config import (
    PRESETS,
    DensityConfig,
    OptimizerConfig,
    density_overrides,
    with_overrides,
)
from ge3d_jax.training.state import TrainState, initial_state

LIMIT = 70
SPLIT = DensityConfig(
    first=1, last=50, every=1, gradient_threshold=1.0, clone_scale=0.1, prune_opacity=0.1, reset_every=7
)
MCMC = DensityConfig(kind="mcmc", first=1, last=50, every=1)


def tagged(state: TrainState, random: np.random.Generator) -> TrainState:
    """The state with random sizes and opacities, and every entry's number in its colour and its moments."""
    count = state.gaussians.capacity
    tags = jnp.arange(count, dtype=jnp.float32) + 1
    opacities = random.uniform(0.001, 0.9, count)
    gaussians = dataclasses.replace(
        state.gaussians,
        sh=jnp.tile(tags[:, None, None], (1, 1, 3)),
        opacity_logits=jnp.asarray(np.log(opacities / (1 - opacities)), jnp.float32),
        log_scales=jnp.asarray(random.uniform(-4.0, -1.2, (count, 1)), jnp.float32) * jnp.ones(3),
    )

    def moments() -> dict[str, jax.Array]:
        return {
            name: jnp.broadcast_to(tags.reshape((count,) + (1,) * (leaf.ndim - 1)), leaf.shape).copy()
            for name, leaf in state.optimizer_state.mu.items()
        }

    statistics = state.statistics.replace(
        gradient_sum=jnp.asarray(random.uniform(0.0, 1.3, count), jnp.float32), view_count=jnp.ones(count)
    )
    optimizer_state = state.optimizer_state._replace(mu=moments(), nu=moments())
    return state.replace(gaussians=gaussians, optimizer_state=optimizer_state, statistics=statistics)


def expected_copies(before: TrainState, done: int, capacity: int) -> tuple[dict[int, int], set[int]]:
    """By a loop over the splats: how many of each remain, and which were split."""
    gaussians, statistics = before.gaussians, before.statistics
    largest = np.exp(np.asarray(gaussians.log_scales)).max(axis=1)
    opacities = np.asarray(jax.nn.sigmoid(gaussians.opacity_logits))
    gradients = np.asarray(statistics.gradient_sum)
    prune_scale = SPLIT.prune_scale if SPLIT.prunes_large_at(done) else np.inf
    copies: dict[int, int] = {}
    wanting, halves = [], set()
    for i in np.flatnonzero(np.asarray(gaussians.mask)):
        splits = gradients[i] >= 1.0 and largest[i] > 0.1
        if opacities[i] < 0.1 or (largest[i] > prune_scale and not splits):
            continue
        copies[i] = 1
        if gradients[i] >= 1.0:
            wanting.append((-gradients[i], i))
    for _, i in sorted(wanting)[: capacity - len(copies)]:
        copies[i] = 2
        if largest[i] > 0.1:
            halves.add(i)
    return {
        i: n for i, n in copies.items() if largest[i] / (1.6 if i in halves else 1) <= prune_scale
    }, halves


def begin(count: int = 12) -> TrainState:
    start = ball(jax.random.key(0), count=count, radius=0.5, opacity=0.5, scale=0.1)
    start = padded(start, first_capacity(count, LIMIT))
    return initial_state(OptimizerConfig(), start, jax.random.key(1))


def test_fifty_rounds_of_clone_and_split_equal_a_loop():
    random = np.random.default_rng(2)
    state, lengths = begin(), set()
    for done in range(1, 51):
        state = tagged(state, random)
        before = jax.tree.map(np.array, state.replace(key=None))
        state = follow_schedule(state, done, config=SPLIT, splat_capacity=LIMIT)
        capacity = state.gaussians.capacity
        lengths.add(capacity)
        copies, halves = expected_copies(before, done, capacity)
        mask = np.asarray(state.gaussians.mask)
        source = np.asarray(state.gaussians.sh[:, 0, 0]).astype(int) - 1
        found = {i: np.flatnonzero(mask & (source == i)) for i in set(source[mask])}
        assert {i: len(where) for i, where in found.items()} == copies, done
        for i, where in found.items():
            for name in ("quaternions", "positions"):
                is_moved = name == "positions" and i in halves
                same = np.all(getattr(state.gaussians, name)[where] == getattr(before.gaussians, name)[i])
                assert same != is_moved
            for moments in (state.optimizer_state.mu, state.optimizer_state.nu):
                kept = np.asarray(moments["positions"])[where, 0]
                # A clone and both halves start from zero, the one cloned keeps what it had.
                assert sorted(kept) == sorted(
                    [0.0] * len(where) if i in halves else [0.0, i + 1][2 - len(where) :]
                )
                is_reset = SPLIT.resets_at(done)
                np.testing.assert_array_equal(moments["opacity_logits"][where], 0 if is_reset else kept)
        if SPLIT.resets_at(done):
            assert float(jax.nn.sigmoid(state.gaussians.opacity_logits).max()) < 0.0101
        assert not np.asarray(state.statistics.gradient_sum).any()
    assert max(lengths) == LIMIT and len(lengths) <= 4, lengths


def test_fifty_rounds_of_a_markov_chain_fill_the_budget_in_few_lengths():
    random = np.random.default_rng(3)
    state, lengths = begin(), set()
    for done in range(1, 51):
        state = tagged(state, random)
        used, opacities = (
            np.asarray(state.gaussians.mask),
            np.asarray(jax.nn.sigmoid(state.gaussians.opacity_logits)),
        )
        number = int(used.sum())
        state = follow_schedule(state, done, config=MCMC, splat_capacity=LIMIT)
        lengths.add(state.gaussians.capacity)
        mask = np.asarray(state.gaussians.mask)
        source = np.asarray(state.gaussians.sh[:, 0, 0]).astype(int) - 1
        assert mask.sum() == min(LIMIT, number + round(0.05 * number))
        lives = np.flatnonzero(used & (opacities > MCMC.prune_opacity))
        np.testing.assert_array_equal(source[lives], lives)
        assert set(source[mask]) == set(lives)
    assert int(mask.sum()) == LIMIT and len(lengths) <= 4
    before = jax.tree.map(np.array, state.gaussians)
    after = follow_schedule(state, 51, config=MCMC, splat_capacity=LIMIT)
    jax.tree.map(np.testing.assert_array_equal, after.gaussians, before)


def test_a_longer_buffer_holds_the_same_and_is_restored(tmp_path):
    state = tagged(begin(), np.random.default_rng(4))
    longer = with_capacity(state, 40)
    assert longer.gaussians.capacity == 40 and int(longer.gaussians.mask.sum()) == 12
    assert not np.asarray(longer.optimizer_state.nu["sh"][16:]).any()
    assert np.asarray(longer.gaussians.quaternions[16:, 0] == 1).all()
    for name in ("positions", "sh", "mask"):
        np.testing.assert_array_equal(getattr(longer.gaussians, name)[:16], getattr(state.gaussians, name))
    np.testing.assert_array_equal(longer.optimizer_state.mu["sh"][:16], state.optimizer_state.mu["sh"])
    save_state(tmp_path / "state", longer)
    restored = restore_state(tmp_path / "state", begin())
    np.testing.assert_array_equal(restored.optimizer_state.mu["sh"], longer.optimizer_state.mu["sh"])
    assert restored.gaussians.capacity == 40


def test_only_a_markov_chain_penalises_and_explores():
    gaussians = dataclasses.replace(begin().gaussians, opacity_logits=jnp.full(16, -8.0))
    key, rate = jax.random.key(0), jnp.float32(1e-3)
    assert explore(key, gaussians, rate, config=SPLIT) is gaussians
    assert density_penalty(gaussians, config=SPLIT) == 0.0
    moved = explore(key, gaussians, rate, config=MCMC)
    assert float(jnp.abs(moved.positions - gaussians.positions)[:12].min()) > 0
    np.testing.assert_array_equal(moved.positions[12:], gaussians.positions[12:])
    expected = 0.01 / (1 + np.exp(8)) + 0.01 * 0.1
    np.testing.assert_allclose(density_penalty(gaussians, config=MCMC), expected, rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_density_of_a_kind_by_one_word(name):
    config = PRESETS[name]
    chosen = with_overrides(config, density_overrides(config, "mcmc"))
    assert chosen.density.is_mcmc and not any(chosen.density.resets_at(k) for k in range(3001))
    rounds = [k for k in range(config.iterations + 1) if chosen.density.densifies_at(k)]
    assert 8 <= len(rounds) <= 30 and rounds[-1] < config.iterations
