"""Opacity resets: objects always have time to recover, and resets stay invisible."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.scenes.clone_and_split import CloneAndSplit
from ge3d_jax.scenes.splats import Splats
from ge3d_jax.scenes.start.ball import Ball
from ge3d_jax.training.checkpoints import restore_state, save_state
from ge3d_jax.training.presets import PRESETS
from ge3d_jax.training.state import initial_state

CAPACITY = 20
# Resets after 10 and 20, recovery after 14 and 24; splats are split or cloned after 12 and 22.
DENSITY = CloneAndSplit(
    first=12,
    last=25,
    every=10,
    gradient_threshold=1.0,
    clone_scale=0.1,
    prune_opacity=0.005,
    reset_every=10,
    recovery=4,
)


def logit(opacity):
    return np.log(opacity / (1 - opacity))


def splats(density=DENSITY):
    return Splats(capacity=CAPACITY, start=Ball(count=12, opacity=0.5, scale=0.05), density=density)


def begin(density=DENSITY):
    scene = splats(density)
    state = scene.begin(jax.random.key(0))
    opacities = jnp.linspace(0.3, 0.8, state.gaussians.capacity)
    gaussians = state.gaussians.replace(opacity_logits=jnp.log(opacities) - jnp.log1p(-opacities))
    state = state.replace(gaussians=gaussians)
    return initial_state(state, scene.parameters(state), jax.random.key(1))


def after(state, done, iterations=30, density=DENSITY):
    """The state after applying the schedule at `done` completed iterations."""
    scene = splats(density)
    changed, moments, _ = scene.on_schedule(
        jax.random.key(done), state.scene, state.moments, done, iterations
    )
    return state.with_scene(changed, moments)


def with_logits(state, logits):
    gaussians = state.scene.gaussians.replace(opacity_logits=jnp.asarray(logits, jnp.float32))
    return state.with_scene(state.scene.replace(gaussians=gaussians), state.moments)


def wanting(state, indices):
    """The state with large gradients for the given splats."""
    statistics = state.scene.statistics
    sums = jnp.zeros_like(statistics.gradient_sum).at[jnp.asarray(indices)].set(2.0)
    seen = statistics.replace(gradient_sum=sums, view_count=jnp.ones_like(sums))
    return state.with_scene(state.scene.replace(statistics=seen), state.moments)


def shown(state, done=0):
    return np.asarray(splats().shown(state.scene, done).opacity_logits)


def test_the_published_resets_all_stay():
    density = PRESETS["paper"].scene.density
    resets = [k for k in range(3001) if density.resets_at(k, PRESETS["paper"].iterations)]
    assert resets == list(range(300, 2701, 300))


@pytest.mark.parametrize(
    ("iterations", "last"), [(300, None), (449, None), (450, 300), (600, 300), (2700, 2400), (2849, 2400)]
)
def test_no_reset_comes_so_late_that_the_object_ends_faint(iterations, last):
    density = CloneAndSplit()
    resets = [k for k in range(iterations + 1) if density.resets_at(k, iterations)]
    assert (resets[-1] if resets else None) == last


def test_recovery_is_as_long_as_opacities_need_at_the_published_rate():
    rate = PRESETS["paper"].scene.learning_rates.opacity[1]
    density = PRESETS["paper"].scene.density
    assert logit(0.9) < logit(density.reset_opacity) + density.recovery * rate < logit(0.99)


def test_large_splats_stay_where_the_run_is_too_short_for_a_reset():
    density = CloneAndSplit()
    assert density.prunes_large_at(400, 450) and not density.prunes_large_at(400, 449)


def test_opacities_are_back_once_and_not_while_another_reset_is_younger():
    backs = [k for k in range(31) if DENSITY.recovers_at(k, 30)]
    assert backs == [14, 24]
    hasty = dataclasses.replace(DENSITY, recovery=15)
    # Resets after 10 and, if there is time, after 20: the first is still active when the second starts.
    assert [k for k in range(61) if hasty.recovers_at(k, 60)] == [35]
    assert [k for k in range(61) if dataclasses.replace(DENSITY, recovery=0).recovers_at(k, 60)] == [10, 20]


def test_recovery_below_zero_is_refused():
    with pytest.raises(UserError, match="density.recovery is -1"):
        CloneAndSplit(recovery=-1)


def test_after_a_reset_the_object_is_shown_as_before_until_it_is_back():
    state = begin()
    before = np.asarray(state.scene.gaussians.opacity_logits)
    np.testing.assert_array_equal(shown(state), before)
    state = after(state, 10)
    np.testing.assert_allclose(state.scene.gaussians.opacity_logits, logit(0.01), rtol=1e-5)
    np.testing.assert_array_equal(shown(state), before)
    # One splat recovered to more than its earlier opacity, the others are still recovering.
    risen = np.full_like(before, -3.0)
    risen[5] = 4.0
    state = with_logits(state, risen)
    for done in (11, 12, 13):
        state = after(state, done)
        np.testing.assert_array_equal(shown(state)[:12], np.where(np.arange(16) == 5, 4.0, before)[:12])
    state = after(state, 14)
    np.testing.assert_array_equal(shown(state), state.scene.gaussians.opacity_logits)
    np.testing.assert_array_equal(shown(state)[:12], risen[:12])


def test_a_reset_during_another_shows_what_was_shown():
    hasty = dataclasses.replace(DENSITY, recovery=10, every=0)
    state = begin(hasty)
    before = np.asarray(state.scene.gaussians.opacity_logits)
    state = after(state, 10, 60, hasty)
    state = after(state, 20, 60, hasty)
    np.testing.assert_array_equal(splats(hasty).shown(state.scene, 20).opacity_logits, before)


def test_new_splats_are_shown_as_those_they_come_from_and_pruned_ones_are_gone():
    state = after(begin(), 10)
    before = shown(state)
    logits = np.array(state.scene.gaussians.opacity_logits)
    logits[2] = logit(0.001)
    # Splat 7 is large and is split, splat 4 is cloned, and splat 2 has become too transparent.
    scales = state.scene.gaussians.log_scales.at[7].set(jnp.log(0.2))
    tags = jnp.arange(16, dtype=jnp.float32)[:, None, None] * jnp.ones((1, 1, 3))
    gaussians = state.scene.gaussians.replace(log_scales=scales, sh=tags)
    state = state.with_scene(state.scene.replace(gaussians=gaussians), state.moments)
    state = wanting(with_logits(state, logits), [4, 7])
    density = dataclasses.replace(DENSITY, first=11, every=1)
    state = after(state, 11, density=density)
    mask = np.asarray(state.scene.gaussians.mask)
    source = np.asarray(state.scene.gaussians.sh[:, 0, 0]).astype(int)
    assert sorted(source[mask]) == sorted([*(i for i in range(12) if i != 2), 4, 7])
    np.testing.assert_array_equal(shown(state)[mask], before[source[mask]])
    assert not np.asarray(state.scene.statistics.gradient_sum).any()


def test_the_memory_of_a_reset_grows_with_the_buffer():
    density = dataclasses.replace(DENSITY, first=11, every=1)
    state = after(begin(density), 10, density=density)
    before = shown(state)
    state = after(wanting(state, range(12)), 11, density=density)
    assert state.scene.gaussians.capacity == CAPACITY and int(state.scene.gaussians.mask.sum()) == CAPACITY
    np.testing.assert_array_equal(shown(state)[:12], before[:12])
    # There is room for eight of the twelve; ties are broken by index.
    np.testing.assert_array_equal(np.sort(shown(state)[12:]), before[:8])


def test_a_saved_state_remembers_the_reset(tmp_path):
    state = after(begin(), 10)
    save_state(tmp_path / "state", state)
    restored = restore_state(tmp_path / "state", begin(), splats())
    np.testing.assert_array_equal(shown(restored), shown(state))
    assert float(shown(restored).min()) > logit(0.2)


def test_without_resets_nothing_is_remembered_and_splats_are_shown_as_they_are():
    never = dataclasses.replace(DENSITY, reset_every=0)
    state = begin(never)
    for done in (10, 12, 14):
        state = after(state, done, density=never)
    assert state.scene.statistics.logits_before_reset == ()
    assert splats(never).shown(state.scene, 14) is state.scene.gaussians
