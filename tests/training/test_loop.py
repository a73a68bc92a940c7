"""Runs from end to end in miniature: growing buffers, density control, interruption, resuming."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import RunDropped, UserError
from ge3d_jax.scenes.density_control import control_density, grown_capacity, lower_opacities
from ge3d_jax.scenes.start.ball import ball
from ge3d_jax.training import compilation as compilation_module
from ge3d_jax.training.checkpoints import restore_state, save_state
from ge3d_jax.training.config import DensityConfig, with_overrides
from ge3d_jax.training.loop import begin, run

PROMPT = "a red ball"


def _run(config, model, *, state=None, start=None, **options):
    state = begin(config, jax.random.key(0), start=start) if state is None else state
    return run(config, model, PROMPT, state, **options)


@pytest.fixture(scope="module")
def whole(tiny_config, tiny_model):
    seen = []

    def watch(done, metrics, state):
        opacities = jax.nn.sigmoid(state.gaussians.opacity_logits)
        seen.append((done, metrics, int(state.gaussians.mask.sum()), float(opacities.max())))

    return _run(tiny_config, tiny_model, on_progress=watch), seen


def test_a_run_tells_once_what_it_compiled(tiny_config, tiny_model):
    told = []
    _run(tiny_config, tiny_model, on_compiled=told.append, on_progress=lambda *_: True)
    (compilation,) = told
    assert compilation.seconds > 0 and compilation.devices == 2
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny_model.unet_params))
    assert compilation.arguments > weights


def test_a_run_that_cannot_fit_is_refused_before_its_first_iteration(tiny_config, tiny_model, monkeypatch):
    monkeypatch.setattr(compilation_module, "memory_limit", lambda device: 1000)
    seen = []
    views = with_overrides(tiny_config, {"views": 4})
    # Two devices: one view at a time on each.
    with pytest.raises(UserError, match="views_per_batch=2"):
        _run(views, tiny_model, on_progress=lambda done, *_: seen.append(done))
    assert not seen


def test_a_run_goes_through_and_reports_every_iteration(whole):
    result, seen = whole
    assert result.iterations == 4 and not result.interrupted
    assert [done for done, *_ in seen] == [1, 2, 3, 4]
    assert all(np.isfinite(metrics.loss) and metrics.overflow == 0 for _, metrics, *_ in seen)


def test_a_buffer_grows_until_the_views_fit_and_the_result_is_the_same(tiny_config, tiny_model, whole):
    small = dataclasses.replace(tiny_config, buffer_capacity=3)
    grown = _run(small, tiny_model)
    assert grown.iterations == 4 and grown.buffer_capacity >= 40
    for field in ("positions", "sh", "mask"):
        expected = getattr(whole[0].gaussians, field)
        np.testing.assert_allclose(getattr(grown.gaussians, field), expected, atol=1e-4)


def test_two_and_two_iterations_are_four_bit_by_bit(tiny_config, tiny_model, whole, tmp_path):
    half = _run(tiny_config, tiny_model, on_progress=lambda done, *_: done == 2)
    assert half.interrupted and half.iterations == 2
    save_state(tmp_path / "state", begin(tiny_config, jax.random.key(7)))
    save_state(tmp_path / "state", half.state)
    template = begin(tiny_config, jax.random.key(9))
    restored = restore_state(tmp_path / "state", template)
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]
    resumed = _run(tiny_config, tiny_model, state=restored)
    assert resumed.iterations == 4 and not resumed.interrupted
    for got, expected in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(whole[0].state), strict=True):
        if jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
            got, expected = jax.random.key_data(got), jax.random.key_data(expected)
        np.testing.assert_array_equal(got, expected)


def test_an_interrupt_gives_the_object_as_it_stands(tiny_config, tiny_model):
    def interrupt(done, metrics, state):
        if done == 1:
            raise KeyboardInterrupt

    result = _run(tiny_config, tiny_model, on_progress=interrupt)
    assert result.interrupted and result.iterations == 1
    chex.assert_tree_all_finite(result.gaussians)


def test_a_dropped_run_gives_nothing(tiny_config, tiny_model):
    def drop(done, metrics, state):
        raise RunDropped

    with pytest.raises(RunDropped):
        _run(tiny_config, tiny_model, on_progress=drop)


def test_the_given_start_is_padded_used_and_left_intact(tiny_config, tiny_model):
    start = ball(jax.random.key(1), count=30, radius=0.3, scale=0.1, opacity=0.5)
    positions = np.asarray(start.positions)
    state = begin(tiny_config, jax.random.key(0), start=start)
    assert state.gaussians.capacity == 48 and int(state.gaussians.mask.sum()) == 30
    result = _run(tiny_config, tiny_model, start=start, on_progress=lambda *_: True)
    np.testing.assert_array_equal(start.positions, positions)
    assert float(np.abs(result.gaussians.positions[:30] - positions).max()) < 0.1
    with pytest.raises(UserError, match="splat_capacity"):
        begin(
            tiny_config,
            jax.random.key(0),
            start=ball(jax.random.key(1), count=49, radius=1, opacity=0.5, scale=1),
        )


def test_density_control_follows_its_schedule(whole):
    _, seen = whole
    # More splats after iteration 2 and no more room afterwards; opacities cut after iteration 3.
    assert [splats for _, _, splats, _ in seen] == [40, 48, 48, 48]
    opacities = [opacity for _, _, _, opacity in seen]
    assert opacities[1] > 0.2 and opacities[2] <= 0.0101 and opacities[3] < 0.02


def test_density_control_moves_moments_and_starts_statistics_anew(tiny_config):
    config = DensityConfig(gradient_threshold=1.0, clone_scale=10.0, prune_scale=0.1)
    state = begin(tiny_config, jax.random.key(0))
    moments = {name: jnp.ones_like(value) for name, value in state.optimizer_state.mu.items()}
    state = state.replace(
        optimizer_state=state.optimizer_state._replace(mu=moments, nu=jax.tree.map(jnp.copy, moments)),
        statistics=state.statistics.replace(
            gradient_sum=jnp.zeros(48).at[5].set(2.0), view_count=jnp.ones(48)
        ),
    )
    before = jax.tree.map(np.asarray, state.gaussians)
    after, report = control_density(state, False, config=config)
    assert int(report.cloned) == 1 and int(after.gaussians.mask.sum()) == 41
    new = int(np.flatnonzero(np.asarray(after.gaussians.mask) & ~before.mask)[0])
    np.testing.assert_array_equal(after.gaussians.positions[new], before.positions[5])
    assert float(jnp.abs(after.optimizer_state.mu["sh"][new]).max()) == 0.0
    assert float(jnp.abs(after.optimizer_state.mu["sh"][6]).min()) == 1.0
    assert float(after.statistics.gradient_sum.max()) == float(after.statistics.view_count.max()) == 0.0
    emptied, _ = control_density(after, True, config=config)
    assert int(emptied.gaussians.mask.sum()) == 0


def test_opacity_reset_clears_its_moments_alone(tiny_config):
    state = begin(tiny_config, jax.random.key(0))
    moments = {name: jnp.ones_like(value) for name, value in state.optimizer_state.mu.items()}
    state = state.replace(
        optimizer_state=state.optimizer_state._replace(mu=moments, nu=jax.tree.map(jnp.copy, moments))
    )
    after = lower_opacities(state, config=DensityConfig())
    used = np.asarray(after.gaussians.mask)
    np.testing.assert_allclose(jax.nn.sigmoid(after.gaussians.opacity_logits)[used], 0.01, rtol=1e-4)
    assert float(after.optimizer_state.mu["opacity_logits"].max()) == 0.0
    assert float(after.optimizer_state.nu["sh"].min()) == 1.0


def test_a_saved_state_that_is_missing_or_does_not_fit_is_named(tiny_config, tmp_path):
    state = begin(tiny_config, jax.random.key(0))
    with pytest.raises(UserError, match="no saved state"):
        restore_state(tmp_path / "none", state)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no saved state"):
        restore_state(tmp_path / "empty", state)
    save_state(tmp_path / "state", state)
    other = begin(dataclasses.replace(tiny_config, splat_capacity=50), jax.random.key(0))
    with pytest.raises(UserError, match=r"does not fit.*gaussians\.log_scales"):
        restore_state(tmp_path / "state", other)


@pytest.mark.parametrize(("needed", "capacity"), [(1, 1), (40, 64), (60, 128), (1000, 2048)])
def test_buffers_grow_to_powers_of_two(needed, capacity):
    assert grown_capacity(needed) == capacity
