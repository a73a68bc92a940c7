"""Complete runs at a tiny scale: buffer growth, density control, interruption, resuming."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import RunDropped, UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.pipeline import predict_epsilon
from ge3d_jax.scenes.splat_state import grown_capacity
from ge3d_jax.scenes.start.ball import ball
from ge3d_jax.training import compilation as compilation_module
from ge3d_jax.training.checkpoints import restore_state, save_state
from ge3d_jax.training.distillation import Distillation, Prompted, begin, prompt_embeddings
from ge3d_jax.training.iterations import MOST_SKIPPED, iterate
from tests.training.toy_task import LONG, ToyScene, ToyTask, begin_toy

PROMPT = "a red ball"


def _run(config, model, *, state=None, start=None, predict=predict_epsilon, **options):
    state = begin(config, model, jax.random.key(0), start=start) if state is None else state
    context = Prompted(model, prompt_embeddings(config, model, PROMPT))
    return iterate(state, context, Distillation(config, predict), parts=config.views_per_pass, **options)


@pytest.fixture(scope="module")
def whole(tiny_config, tiny_model):
    seen = []

    def watch(done, metrics, state):
        opacities = jax.nn.sigmoid(state.scene.gaussians.opacity_logits)
        seen.append((done, metrics, int(state.scene.gaussians.mask.sum()), float(opacities.max())))

    return _run(tiny_config, tiny_model, on_iteration=watch), seen


def test_a_run_tells_once_what_it_compiled(tiny_config, tiny_model):
    told = []
    _run(tiny_config, tiny_model, on_compiled=told.append, on_iteration=lambda *_: True)
    (compilation,) = told
    assert compilation.seconds > 0 and compilation.devices == 2
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny_model.unet_params))
    assert compilation.arguments > weights


def test_a_run_that_cannot_fit_is_refused_before_its_first_iteration(tiny_config, tiny_model, monkeypatch):
    monkeypatch.setattr(compilation_module, "memory_limit", lambda device: 1000)
    seen = []
    # Each of two devices has one view; a single device could process its two views in turn.
    with pytest.raises(UserError, match="lower views or the size of the pictures"):
        _run(tiny_config, tiny_model, on_iteration=lambda done, *_: seen.append(done))
    assert not seen


def test_a_run_goes_through_and_reports_every_iteration(whole):
    result, seen = whole
    assert result.iterations == 4 and not result.interrupted
    assert [done for done, *_ in seen] == [1, 2, 3, 4]
    assert all(np.isfinite(numbers["loss"]) and numbers["overflow"] == 0 for _, numbers, *_ in seen)


def test_a_buffer_grows_until_the_views_fit_and_the_result_is_the_same(tiny_config, tiny_model, whole):
    small = with_overrides(tiny_config, {"scene.buffer_capacity": 3})
    grown = _run(small, tiny_model)
    assert grown.iterations == 4 and grown.task.scene.buffer_capacity >= 40
    for field in ("positions", "sh", "mask"):
        expected = getattr(whole[0].object, field)
        np.testing.assert_allclose(getattr(grown.object, field), expected, atol=1e-4)


def test_two_and_two_iterations_are_four_bit_by_bit(tiny_config, tiny_model, whole, tmp_path):
    half = _run(tiny_config, tiny_model, on_iteration=lambda done, *_: done == 2)
    assert half.interrupted and half.iterations == 2
    save_state(tmp_path / "state", begin(tiny_config, tiny_model, jax.random.key(7)))
    save_state(tmp_path / "state", half.state)
    template = begin(tiny_config, tiny_model, jax.random.key(9))
    restored = restore_state(tmp_path / "state", template, tiny_config.scene)
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

    result = _run(tiny_config, tiny_model, on_iteration=interrupt)
    assert result.interrupted and result.iterations == 1
    chex.assert_tree_all_finite(result.object)


def test_an_interrupt_of_what_is_scheduled_lets_it_happen_first():
    class Interrupted(ToyScene):
        asks = [True]

        def on_schedule(self, key, state, moments, done, iterations):
            if done == 2 and self.asks:
                self.asks.clear()
                raise KeyboardInterrupt
            return super().on_schedule(key, state, moments, done, iterations)

    task = ToyTask(scene=Interrupted())
    result = iterate(begin_toy(task, [0.5, -0.2, 0.9], 0), jnp.float32(0.5), task, parts=1)
    assert result.interrupted and result.iterations == int(result.state.iteration) == 2
    # Two points are added after the second iteration.
    assert result.object.size == LONG


def test_scheduled_operations_draw_new_random_numbers_each_time():
    keys = []

    class Drawing(ToyScene):
        def on_schedule(self, key, state, moments, done, iterations):
            keys.append(tuple(jax.random.key_data(key).tolist()))
            return state, moments, {}

    task = ToyTask(scene=Drawing())
    iterate(begin_toy(task, [0.5, -0.2, 0.9], 0), jnp.float32(0.5), task, parts=1, stop_at=5)
    assert len(keys) == len(set(keys)) == 5


def test_a_dropped_run_gives_nothing(tiny_config, tiny_model):
    def drop(done, metrics, state):
        raise RunDropped

    with pytest.raises(RunDropped):
        _run(tiny_config, tiny_model, on_iteration=drop)


def test_the_given_start_is_padded_used_and_left_intact(tiny_config, tiny_model):
    start = ball(jax.random.key(1), count=30, radius=0.3, scale=0.1, opacity=0.5)
    positions = np.asarray(start.positions)
    state = begin(tiny_config, tiny_model, jax.random.key(0), start=start)
    assert state.scene.gaussians.capacity == 48 and int(state.scene.gaussians.mask.sum()) == 30
    result = _run(tiny_config, tiny_model, start=start, on_iteration=lambda *_: True)
    np.testing.assert_array_equal(start.positions, positions)
    assert float(np.abs(result.object.positions[:30] - positions).max()) < 0.1
    with pytest.raises(UserError, match="scene.capacity"):
        begin(
            tiny_config,
            tiny_model,
            jax.random.key(0),
            start=ball(jax.random.key(1), count=49, radius=1, opacity=0.5, scale=1),
        )


def test_density_control_follows_its_schedule(whole):
    _, seen = whole
    # Splats are added after iteration 2, which fills the buffer; opacities are reset after iteration 3.
    assert [splats for _, _, splats, _ in seen] == [40, 48, 48, 48]
    opacities = [opacity for _, _, _, opacity in seen]
    assert opacities[1] > 0.2 and opacities[2] <= 0.0101 and opacities[3] < 0.02


def test_a_saved_state_that_is_missing_or_does_not_fit_is_named(tiny_config, tiny_model, tmp_path):
    state = begin(tiny_config, tiny_model, jax.random.key(0))
    with pytest.raises(UserError, match="no saved state"):
        restore_state(tmp_path / "none", state, tiny_config.scene)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no saved state"):
        restore_state(tmp_path / "empty", state, tiny_config.scene)
    save_state(tmp_path / "state", state)
    other = begin(with_overrides(tiny_config, {"scene.capacity": 50}), tiny_model, jax.random.key(0))
    with pytest.raises(UserError, match=r"does not fit.*log_scales is \(\(48, 3\)"):
        restore_state(tmp_path / "state", other, tiny_config.scene)


@pytest.mark.parametrize(("needed", "capacity"), [(1, 1), (40, 64), (60, 128), (1000, 2048)])
def test_buffers_grow_to_powers_of_two(needed, capacity):
    assert grown_capacity(needed) == capacity


def test_a_step_is_left_out_if_only_what_the_loss_learns_has_no_finite_gradient():
    class Steep(ToyTask):
        def look(self, scene, learned, *others):
            scalar, *rest = super().look(scene, learned, *others)
            return scalar + jnp.sqrt(learned["w"]), *rest

    task, told = Steep(), []
    state = begin_toy(task, [0.5, -0.2, 0.9], 0)
    result = iterate(
        state,
        jnp.float32(0.5),
        task,
        parts=1,
        stop_at=1,
        on_iteration=lambda done, numbers, _: told.append(numbers),
    )
    assert told[0]["skipped"] == 1 and np.isfinite(told[0]["loss"])
    np.testing.assert_array_equal(result.state.scene["x"], state.scene["x"])
    assert float(result.state.learned["w"]) == 0.0


def test_steps_without_a_finite_gradient_are_left_out_and_many_in_a_row_end_a_run(tiny_config, tiny_model):
    # The iterations in which the network fails: a few, then one fewer than ends a run, then enough.
    ends = 28 + MOST_SKIPPED - 1
    fails = {2, 4, 5, *range(7, 7 + MOST_SKIPPED - 1), *range(28, ends + 1)}
    at, seen = 1, []

    def failing(model, x, t, text):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return x + jax.pure_callback(lambda t: np.float32(np.nan if at in fails else 0.0), shape, t)

    def watch(done, numbers, state):
        nonlocal at
        at = done + 1
        kept = (state.scene, state.optimizer_state, state.learned)
        seen.append((numbers["skipped"], jax.tree.map(np.array, kept)))

    config = with_overrides(
        tiny_config, {"iterations": ends + 1, "density.every": 0, "density.reset_every": 0}
    )
    result = _run(config, tiny_model, predict=failing, on_iteration=watch)
    assert [done for done, (skipped, _) in enumerate(seen, 1) if skipped] == sorted(fails)
    for done, ((_, before), (_, after)) in enumerate(itertools.pairwise(seen), 2):
        same = jax.tree.leaves(jax.tree.map(np.array_equal, before, after))
        assert all(same) if done in fails else not all(same), done
    assert result.diverged and not result.interrupted
    assert result.iterations == len(seen) == ends
    chex.assert_tree_all_finite(result.object)
    assert not np.array_equal(
        result.object.sh, begin(config, tiny_model, jax.random.key(0)).scene.gaussians.sh
    )
