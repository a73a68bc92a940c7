"""Density control of a full state: fifty rounds compared with a loop, buffer growth, saving and restoring."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.scenes.clone_and_split import CloneAndSplit, control_density, lower_opacities
from ge3d_jax.scenes.markov_chain import MarkovChain
from ge3d_jax.scenes.relocate import Relocate
from ge3d_jax.scenes.replace_unseen import ReplaceUnseen, replace_unseen
from ge3d_jax.scenes.splat_state import with_capacity
from ge3d_jax.scenes.splats import Perturbations, Splats
from ge3d_jax.scenes.start.ball import Ball
from ge3d_jax.splatting.mcmc import exploration_noise
from ge3d_jax.training.checkpoints import restore_state, save_state
from ge3d_jax.training.presets import PRESETS, configured
from ge3d_jax.training.state import TrainState, initial_state

LIMIT = 70
SPLIT = CloneAndSplit(
    first=1,
    last=50,
    every=1,
    gradient_threshold=1.0,
    clone_scale=0.1,
    prune_opacity=0.1,
    reset_every=7,
    recovery=1,
)
ROUNDS = 50
MCMC = MarkovChain(first=1, last=50, every=1)


def tagged(state: TrainState, random: np.random.Generator) -> TrainState:
    """The state with random sizes and opacities; each splat's color and moments encode its index."""
    splats = state.scene.gaussians
    count = splats.capacity
    tags = jnp.arange(count, dtype=jnp.float32) + 1
    opacities = random.uniform(0.001, 0.9, count)
    gaussians = dataclasses.replace(
        splats,
        sh=jnp.tile(tags[:, None, None], (1, 1, 3)),
        opacity_logits=jnp.asarray(np.log(opacities / (1 - opacities)), jnp.float32),
        log_scales=jnp.asarray(random.uniform(-4.0, -1.2, (count, 1)), jnp.float32) * jnp.ones(3),
    )

    def moments() -> dict[str, jax.Array]:
        return {
            name: jnp.broadcast_to(tags.reshape((count,) + (1,) * (leaf.ndim - 1)), leaf.shape).copy()
            for name, leaf in state.optimizer_state.mu.items()
        }

    statistics = state.scene.statistics
    if statistics:
        statistics = statistics.replace(
            gradient_sum=jnp.asarray(random.uniform(0.0, 1.3, count), jnp.float32),
            view_count=jnp.ones(count),
        )
    after = state.scene.replace(gaussians=gaussians, statistics=statistics)
    return state.with_scene(after, {"mu": moments(), "nu": moments()})


def expected_copies(before: TrainState, done: int, capacity: int) -> tuple[dict[int, int], set[int]]:
    """Loop over the splats to find how many copies of each remain, and which were split."""
    gaussians, statistics = before.scene.gaussians, before.scene.statistics
    largest = np.exp(np.asarray(gaussians.log_scales)).max(axis=1)
    opacities = np.asarray(jax.nn.sigmoid(gaussians.opacity_logits))
    gradients = np.asarray(statistics.gradient_sum)
    prune_scale = SPLIT.prune_scale if SPLIT.prunes_large_at(done, ROUNDS) else np.inf
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


def scene(density) -> Splats:
    return Splats(capacity=LIMIT, start=Ball(count=12, opacity=0.5, scale=0.1), density=density)


def begin(density=SPLIT) -> TrainState:
    splats = scene(density)
    state = splats.begin(jax.random.key(0))
    return initial_state(state, splats.parameters(state), jax.random.key(1))


def follow_schedule(state: TrainState, done: int, density) -> TrainState:
    key = jax.random.key(done)
    after, moments, _ = scene(density).on_schedule(key, state.scene, state.moments, done, ROUNDS)
    return state.with_scene(after, moments)


def test_fifty_rounds_of_clone_and_split_equal_a_loop():
    random = np.random.default_rng(2)
    state, lengths = begin(), set()
    for done in range(1, 51):
        state = tagged(state, random)
        before = jax.tree.map(np.array, state.replace(key=None))
        state = follow_schedule(state, done, SPLIT)
        # NumPy arrays, because the checks below access thousands of small values.
        after = jax.tree.map(np.array, state.replace(key=None))
        capacity = after.scene.gaussians.capacity
        lengths.add(capacity)
        copies, halves = expected_copies(before, done, capacity)
        mask = after.scene.gaussians.mask
        source = after.scene.gaussians.sh[:, 0, 0].astype(int) - 1
        found = {i: np.flatnonzero(mask & (source == i)) for i in set(source[mask])}
        assert {i: len(where) for i, where in found.items()} == copies, done
        for i, where in found.items():
            for name in ("quaternions", "positions"):
                is_moved = name == "positions" and i in halves
                same = np.all(
                    getattr(after.scene.gaussians, name)[where] == getattr(before.scene.gaussians, name)[i]
                )
                assert same != is_moved
            for moments in (after.optimizer_state.mu, after.optimizer_state.nu):
                kept = moments["positions"][where, 0]
                # Clones and both halves of a split start from zero; the cloned splat keeps its moments.
                assert sorted(kept) == sorted(
                    [0.0] * len(where) if i in halves else [0.0, i + 1][2 - len(where) :]
                )
                is_reset = SPLIT.resets_at(done, ROUNDS)
                np.testing.assert_array_equal(moments["opacity_logits"][where], 0 if is_reset else kept)
        if SPLIT.resets_at(done, ROUNDS):
            assert float(jax.nn.sigmoid(after.scene.gaussians.opacity_logits).max()) < 0.0101
        assert not after.scene.statistics.gradient_sum.any()
    assert max(lengths) == LIMIT and len(lengths) <= 4, lengths


def test_fifty_rounds_of_a_markov_chain_fill_the_budget_in_few_lengths():
    random = np.random.default_rng(3)
    state, lengths = begin(MCMC), set()
    for done in range(1, 51):
        state = tagged(state, random)
        used, opacities = (
            np.asarray(state.scene.gaussians.mask),
            np.asarray(jax.nn.sigmoid(state.scene.gaussians.opacity_logits)),
        )
        number = int(used.sum())
        state = follow_schedule(state, done, MCMC)
        lengths.add(state.scene.gaussians.capacity)
        mask = np.asarray(state.scene.gaussians.mask)
        source = np.asarray(state.scene.gaussians.sh[:, 0, 0]).astype(int) - 1
        assert mask.sum() == min(LIMIT, number + round(0.05 * number))
        lives = np.flatnonzero(used & (opacities > MCMC.prune_opacity))
        np.testing.assert_array_equal(source[lives], lives)
        assert set(source[mask]) == set(lives)
    assert int(mask.sum()) == LIMIT and len(lengths) <= 4
    before = jax.tree.map(np.array, state.scene.gaussians)
    after = follow_schedule(state, 51, MCMC)
    jax.tree.map(np.testing.assert_array_equal, after.scene.gaussians, before)


def test_relocation_goes_by_rank_and_keeps_the_number():
    strategy = Relocate(first=2, last=6, every=2, share=0.25, split_scale=0.0)
    state = tagged(begin(strategy), np.random.default_rng(6))
    # All gradients are small, because only their order matters.
    asked = np.random.default_rng(7).permutation(16) * 1e-6 + 1e-6
    seen = state.scene.statistics.replace(gradient_sum=jnp.asarray(asked, jnp.float32))
    state = state.with_scene(state.scene.replace(statistics=seen), state.moments)
    before = jax.tree.map(np.array, state.replace(key=None))
    for done in (1, 3, 8):
        assert not scene(strategy).density.relocates_at(done)
    used = np.flatnonzero(before.scene.gaussians.mask)
    ranked = used[np.argsort(asked[used])]
    assert len(used) == 12
    copy = jax.tree.map(jnp.copy, state)
    after = jax.tree.map(np.array, follow_schedule(state, 6, strategy).replace(key=None))
    mask = after.scene.gaussians.mask
    source = after.scene.gaussians.sh[:, 0, 0].astype(int) - 1
    assert sorted(source[mask]) == sorted([*ranked[3:], *ranked[-3:]])
    assert set(np.flatnonzero(mask)) == set(used)
    for index in np.flatnonzero(mask):
        is_half = source[index] in ranked[-3:]
        shrunk = before.scene.gaussians.log_scales[source[index]] - (np.log(1.6) if is_half else 0.0)
        np.testing.assert_allclose(after.scene.gaussians.log_scales[index], shrunk, rtol=1e-6)
        moved = after.scene.gaussians.positions[index] - before.scene.gaussians.positions[source[index]]
        size = np.exp(before.scene.gaussians.log_scales[source[index]].max())
        assert 0 < np.linalg.norm(moved) < 5 * size if is_half else not moved.any()
        kept = after.optimizer_state.nu["positions"][index, 0]
        assert kept == (0.0 if is_half else source[index] + 1)
    halves = after.scene.gaussians.positions[mask & np.isin(source, ranked[-3:])]
    assert len(np.unique(halves, axis=0)) == 6
    assert not after.scene.statistics.gradient_sum.any() and not after.scene.statistics.view_count.any()
    # If only two splats are large enough, these two are split and two others are removed.
    large = np.argsort(before.scene.gaussians.log_scales[used, 0])[-2:]
    limit = np.exp(np.sort(before.scene.gaussians.log_scales[used, 0])[-3])
    small = dataclasses.replace(strategy, split_scale=float(limit))
    after = jax.tree.map(np.array, follow_schedule(copy, 6, small).replace(key=None))
    source = after.scene.gaussians.sh[:, 0, 0].astype(int)[after.scene.gaussians.mask] - 1
    staying = [index for index in ranked if index not in used[large]]
    assert sorted(source) == sorted([*staying[2:], *used[large], *used[large]])
    for share in (0.0, 0.6):
        with pytest.raises(UserError, match="share"):
            Relocate(share=share)


REPLACE = ReplaceUnseen(first=2, last=6, every=2, share=0.25, unseen_below=0.5, split_scale=0.0)


def seen_splats(strategy, color_sums, gradient_sums) -> TrainState:
    """Twelve splats in a buffer of 16, with these statistics and tagged as in `tagged`."""
    state = tagged(begin(strategy), np.random.default_rng(8))
    statistics = state.scene.statistics.replace(
        color_sum=jnp.asarray(color_sums, jnp.float32), gradient_sum=jnp.asarray(gradient_sums, jnp.float32)
    )
    return state.with_scene(state.scene.replace(statistics=statistics), state.moments)


def sources_of(gaussians) -> list[int]:
    """Which splats are left, halves twice, by the index they had."""
    return sorted((np.asarray(gaussians.sh[:, 0, 0])[np.asarray(gaussians.mask)] - 1).astype(int))


def sources(state: TrainState) -> list[int]:
    """`sources_of` a state's splats."""
    return sources_of(state.scene.gaussians)


def test_unseen_splats_make_room_for_splits_where_gradients_are_largest():
    gradients = np.random.default_rng(9).permutation(16) * 1e-6 + 1e-6
    # The mean over the twelve in use is 0.85, so those below 0.425 are unseen.
    colors = np.array([1.0] * 8 + [0.9, 0.42, 0.43, 0.45] + [0.0] * 4)
    state = seen_splats(REPLACE, colors, gradients)
    before = jax.tree.map(np.array, state.replace(key=None))
    assert [done for done in range(9) if REPLACE.replaces_at(done)] == [2, 4, 6]
    assert not any(dataclasses.replace(REPLACE, every=0).replaces_at(done) for done in range(9))
    after = follow_schedule(state, 6, REPLACE)
    remaining = [index for index in range(12) if index != 9]
    doubles = sorted(remaining, key=lambda index: -gradients[index])[:3]
    assert sources(after) == sorted(remaining + doubles), "three of twelve are split, one is removed"
    after = jax.tree.map(np.array, after.replace(key=None))
    source = after.scene.gaussians.sh[:, 0, 0].astype(int) - 1
    for index in np.flatnonzero(after.scene.gaussians.mask):
        is_half = source[index] in doubles
        shrunk = before.scene.gaussians.log_scales[source[index]] - (np.log(1.6) if is_half else 0.0)
        np.testing.assert_allclose(after.scene.gaussians.log_scales[index], shrunk, rtol=1e-6)
        kept = after.optimizer_state.nu["positions"][index, 0]
        assert kept == (0.0 if is_half else source[index] + 1)
    assert not any(leaf.any() for leaf in jax.tree.leaves(after.scene.statistics))


def test_no_more_than_the_share_leave_and_the_least_seen_first():
    # Five are below half the mean; a share of 0.25 lets three go.
    colors = np.array([2.0] * 7 + [0.05, 0.04, 0.01, 0.02, 0.03] + [0.0] * 4)
    small = dataclasses.replace(REPLACE, split_scale=10.0)
    after = follow_schedule(seen_splats(small, colors, np.ones(16)), 2, small)
    assert sources(after) == [*range(9)], "splats up to the split scale are not split"
    none = follow_schedule(seen_splats(small, colors, np.ones(16)), 3, small)
    assert sources(none) == [*range(12)]


def test_a_full_buffer_splits_the_largest_gradients_in_the_room_of_the_unseen():
    # The two unseen ones have the largest gradients; of the others, 14 and 10 have.
    colors = np.where(np.isin(np.arange(16), [3, 12]), 0.0, 1.0)
    gradients = np.linspace(0.2, 0.1, 16)
    gradients[[3, 12, 14, 10]] = [2.0, 3.0, 1.0, 0.5]
    state = seen_splats(REPLACE, colors, gradients).scene
    full = dataclasses.replace(state.gaussians, mask=jnp.ones(16, bool))
    # It does not matter in how many views the gradients were.
    statistics = state.statistics.replace(view_count=jnp.where(jnp.arange(16) == 14, 100.0, 1.0))
    state = state.replace(gaussians=full, statistics=statistics)
    after, _ = replace_unseen(jax.random.key(0), state, {}, strategy=REPLACE)
    remaining = [index for index in range(16) if index not in (3, 12)]
    assert sources_of(after.gaussians) == sorted([*remaining, 10, 14])


def test_without_gradients_all_splats_count_as_seen():
    small = dataclasses.replace(REPLACE, split_scale=10.0)
    after = follow_schedule(seen_splats(small, np.zeros(16), np.zeros(16)), 2, small)
    assert sources(after) == [*range(12)]


def test_the_longest_axis_of_a_splat_is_what_must_be_above_the_split_scale():
    strategy = dataclasses.replace(REPLACE, split_scale=0.1)
    state = seen_splats(strategy, np.ones(16), np.ones(16)).scene
    sizes = jnp.full((16, 3), 0.01).at[5, 1].set(0.11).at[6, 2].set(0.09)
    gaussians = dataclasses.replace(state.gaussians, log_scales=jnp.log(sizes))
    after, _ = replace_unseen(jax.random.key(0), state.replace(gaussians=gaussians), {}, strategy=strategy)
    assert sources_of(after.gaussians) == sorted([*range(12), 5])


def test_the_number_of_splats_grows_to_the_capacity_and_no_further():
    state = seen_splats(REPLACE, np.ones(16), np.arange(16))
    random, numbers = np.random.default_rng(10), []
    for _ in range(12):
        state = follow_schedule(state, 4, REPLACE)
        numbers.append(int(state.scene.gaussians.mask.sum()))
        capacity = state.scene.gaussians.capacity
        # All are seen; gradients differ, so that it matters who gets the last entries.
        asked = random.permutation(capacity)
        statistics = state.scene.statistics.replace(
            color_sum=jnp.ones(capacity), gradient_sum=jnp.asarray(asked, jnp.float32)
        )
        state = state.with_scene(state.scene.replace(statistics=statistics), state.moments)
    assert numbers[:3] == [15, 18, 22] and numbers[-1] == LIMIT == capacity
    for name in ("share", "unseen_below"):
        for value in (0.0, 1.0):
            with pytest.raises(UserError, match=f"density.{name} is {value}; give a number between 0 and 1"):
                ReplaceUnseen(**{name: value})
    with pytest.raises(UserError, match="density.every"):
        ReplaceUnseen(every=-1)


def test_the_norms_of_color_gradients_are_added_over_views():
    state = begin(REPLACE).scene
    once = updated(REPLACE, state)
    np.testing.assert_allclose(once.statistics.color_sum, 2 * 3.0, rtol=1e-6)
    np.testing.assert_allclose(updated(REPLACE, once).statistics.color_sum, 4 * 3.0, rtol=1e-6)


def test_a_longer_buffer_holds_the_same_and_is_restored(tmp_path):
    state = tagged(begin(), np.random.default_rng(4))
    longer = state.with_scene(*with_capacity(state.scene, state.moments, 40))
    gaussians = longer.scene.gaussians
    assert gaussians.capacity == 40 and int(gaussians.mask.sum()) == 12
    assert not np.asarray(longer.optimizer_state.nu["sh"][16:]).any()
    assert not np.asarray(longer.scene.statistics.gradient_sum[16:]).any()
    assert np.asarray(gaussians.quaternions[16:, 0] == 1).all()
    for name in ("positions", "sh", "mask"):
        np.testing.assert_array_equal(getattr(gaussians, name)[:16], getattr(state.scene.gaussians, name))
    np.testing.assert_array_equal(longer.optimizer_state.mu["sh"][:16], state.optimizer_state.mu["sh"])
    save_state(tmp_path / "state", longer)
    restored = restore_state(tmp_path / "state", begin(), scene(SPLIT))
    np.testing.assert_array_equal(restored.optimizer_state.mu["sh"], longer.optimizer_state.mu["sh"])
    assert restored.scene.gaussians.capacity == 40


def test_what_a_loss_learns_is_not_rearranged_even_where_it_is_as_long_as_the_splats():
    factors = jnp.arange(16.0)
    state = tagged(begin(), np.random.default_rng(5)).replace(learned={"lora": factors})
    after = follow_schedule(state, 1, SPLIT)
    assert not np.array_equal(after.scene.gaussians.sh[:16], state.scene.gaussians.sh)
    np.testing.assert_array_equal(after.learned["lora"], factors)


def updated(density, state, key=0):
    return scene(density).after_update(
        jax.random.key(key),
        state,
        Perturbations(
            screen=jnp.full((2, state.gaussians.capacity, 2), 0.5),
            color=jnp.full((2, state.gaussians.capacity, 3), jnp.array([1.0, -2.0, 2.0])),
        ),
        jnp.ones((2, state.gaussians.capacity)).at[1].set(0.0),
        progress=jnp.float32(0.0),
        image_size=(20, 10),
    )


def test_only_a_markov_chain_penalizes_and_explores():
    state = begin().scene
    faint = dataclasses.replace(state.gaussians, opacity_logits=jnp.full(16, -8.0))
    split, chain = (
        updated(SPLIT, state.replace(gaussians=faint)),
        updated(MCMC, state.replace(gaussians=faint, statistics=())),
    )
    np.testing.assert_array_equal(split.gaussians.positions, faint.positions)
    assert SPLIT.penalty(faint) == Relocate().penalty(faint) == REPLACE.penalty(faint) == 0.0
    assert float(jnp.abs(chain.gaussians.positions - faint.positions)[:12].min()) > 0
    noise = MCMC.noise * scene(MCMC).learning_rates.position[0] * exploration_noise(jax.random.key(0), faint)
    np.testing.assert_allclose(chain.gaussians.positions, faint.positions + noise, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(chain.gaussians.positions[12:], faint.positions[12:])
    expected = 0.01 / (1 + np.exp(8)) + 0.01 * 0.1
    np.testing.assert_allclose(MCMC.penalty(faint), expected, rtol=1e-4)
    opaque = dataclasses.replace(MCMC, opacity_penalty=3.0)
    np.testing.assert_allclose(opaque.penalty(faint), 3.0 / (1 + np.exp(8)) + 0.01 * 0.1, rtol=1e-4)
    weighed = dataclasses.replace(scene(MCMC), scale_penalty=2.0)
    np.testing.assert_allclose(
        weighed.penalty(state.replace(gaussians=faint)), expected + 2.0 * 0.1, rtol=1e-4
    )


def test_statistics_count_the_views_that_see_a_splat():
    for strategy in (SPLIT, Relocate(), ReplaceUnseen()):
        seen = updated(strategy, begin(strategy).scene).statistics
        # Half the picture's width and height times the pixel gradient; the second view sees no splat.
        np.testing.assert_allclose(seen.gradient_sum, np.hypot(0.5 * 10, 0.5 * 5), rtol=1e-6)
        np.testing.assert_array_equal(seen.view_count, 1)


def test_density_control_moves_moments_and_starts_statistics_anew():
    strategy = CloneAndSplit(gradient_threshold=1.0, clone_scale=10.0, prune_scale=0.05)
    state = begin()
    ones = {name: jnp.ones_like(value) for name, value in state.optimizer_state.mu.items()}
    moments = {"mu": ones, "nu": jax.tree.map(jnp.copy, ones)}
    statistics = state.scene.statistics.replace(
        gradient_sum=jnp.zeros(16).at[5].set(2.0), view_count=jnp.ones(16)
    )
    before = jax.tree.map(np.asarray, state.scene.gaussians)
    after, moved, report = control_density(
        jax.random.key(0), state.scene.replace(statistics=statistics), moments, jnp.inf, strategy=strategy
    )
    assert int(report.cloned) == 1 and int(after.gaussians.mask.sum()) == 13
    new = int(np.flatnonzero(np.asarray(after.gaussians.mask) & ~before.mask)[0])
    np.testing.assert_array_equal(after.gaussians.positions[new], before.positions[5])
    assert float(jnp.abs(moved["mu"]["sh"][new]).max()) == 0.0
    assert float(jnp.abs(moved["mu"]["sh"][6]).min()) == 1.0
    assert float(after.statistics.gradient_sum.max()) == float(after.statistics.view_count.max()) == 0.0
    emptied, _, _ = control_density(jax.random.key(0), after, moved, strategy.prune_scale, strategy=strategy)
    assert int(emptied.gaussians.mask.sum()) == 0


def test_opacity_reset_clears_its_moments_alone():
    state = begin()
    ones = {name: jnp.ones_like(value) for name, value in state.optimizer_state.mu.items()}
    after, moments = lower_opacities(
        state.scene, {"mu": ones, "nu": jax.tree.map(jnp.copy, ones)}, strategy=CloneAndSplit()
    )
    used = np.asarray(after.gaussians.mask)
    np.testing.assert_allclose(jax.nn.sigmoid(after.gaussians.opacity_logits)[used], 0.01, rtol=1e-4)
    assert float(moments["mu"]["opacity_logits"].max()) == 0.0
    assert float(moments["nu"]["sh"].min()) == 1.0


@pytest.mark.parametrize("name", PRESETS)
def test_density_of_a_kind_by_one_word(name):
    config = PRESETS[name]
    chosen = configured(name, density="mcmc")
    density = chosen.scene.density
    assert isinstance(density, MarkovChain)
    rounds = [k for k in range(config.iterations + 1) if density.relocates_at(k)]
    assert 8 <= len(rounds) <= 30 and rounds[-1] < config.iterations
    assert density.noise == (1e4 if name.startswith("toybox") else 5e5)
    shorter = configured(name, density="mcmc", overrides={"density.growth": 0.2})
    assert shorter == with_overrides(chosen, {"density.growth": 0.2})


def test_density_control_keeps_its_schedule():
    density = PRESETS["paper"].scene.density
    assert [k for k in range(3001) if density.densifies_at(k)] == list(range(200, 2901, 100))
    assert [k for k in range(1, 1000) if density.resets_at(k, 3000)] == [300, 600, 900]
    assert not density.prunes_large_at(300, 3000) and density.prunes_large_at(301, 3000)
    never = dataclasses.replace(density, every=0, reset_every=0)
    assert not any(
        never.densifies_at(k) or never.resets_at(k, 3000) or never.prunes_large_at(k, 3000)
        for k in range(600)
    )
