"""Runs that step together: each is what it would be by itself, whatever the others do."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from ge3d_jax.core.devices import batch_mesh, replicated
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.training.distillation import Distillation, begin, draw_by_view
from ge3d_jax.training.iterations import MOST_SKIPPED, iterate_together
from ge3d_jax.training.step import _step, _step_together, make_step
from tests.errors import relative_error

ROOT = Path(__file__).parent.parent.parent
SEEDS = (0, 1, 2)
# Compared after so many iterations, when splats have come and opacities were lowered.
COMPARED = 4
FIELDS = ("positions", "log_scales", "opacity_logits", "sh")


def predict(model, x, t, text, adapter=None):
    """A smooth function of all that a network sees, quickly compiled."""
    times = jnp.broadcast_to(t, x.shape[:1])[:, None, None, None] / 1000.0
    words = jnp.tanh(text[:, :1, :4])[:, None] * jnp.cos(3.0 * x)
    camera = 0.0 if adapter is None else jnp.sin(adapter.time_offset[:, :4])[:, None, None]
    return jnp.tanh(x) * (0.5 + times) + 0.3 * words + 0.1 * camera


@pytest.fixture(scope="module")
def task(tiny_config):
    # Long enough for a run to diverge; the schedule of density control is that of the shorter one.
    return Distillation(with_overrides(tiny_config, {"shared_nodes": True, "iterations": MOST_SKIPPED + 2}))


@pytest.fixture(scope="module")
def programs():
    """Compiled once for all tests."""
    return {}


@pytest.fixture(scope="module")
def perform(task, prompted, programs):
    def perform(states, *, task=task, **options):
        return iterate_together(states, prompted, task, parts=2, programs=programs, **options)

    return perform


@pytest.fixture(scope="module")
def states(task, tiny_model):
    return [begin(task.config, tiny_model, jax.random.key(seed)) for seed in SEEDS]


@pytest.fixture(scope="module")
def alone(states, perform):
    return [perform([state], stop_at=COMPARED)[0] for state in states]


def assert_same_object(got, expected):
    assert int(got.object.mask.sum()) == int(expected.object.mask.sum())
    used = np.asarray(expected.object.mask)
    for field in FIELDS:
        one, other = (np.asarray(getattr(each.object, field))[: used.size] for each in (got, expected))
        assert relative_error(one[used], other[used]) < 1e-4, field


def with_scene(state, **changes):
    gaussians = state.scene.gaussians.replace(**changes)
    return state.replace(scene=state.scene.replace(gaussians=gaussians))


def test_three_seeds_together_are_what_each_is_alone(states, perform, alone):
    told = []
    together = perform(
        states, stop_at=COMPARED, on_iteration=lambda index, done, *_: told.append((done, index))
    )
    assert told == [(done, index) for done in range(1, COMPARED + 1) for index in range(len(SEEDS))]
    for got, expected in zip(together, alone, strict=True):
        assert got.iterations == COMPARED and not got.interrupted and not got.diverged
        assert_same_object(got, expected)
    assert relative_error(together[0].object.sh, together[1].object.sh) > 0.01


def test_a_run_by_itself_gives_the_same_bytes_again(states, perform, alone):
    (again,) = perform([states[1]], stop_at=COMPARED)
    chex.assert_trees_all_equal(again.object, alone[1].object)


def test_a_run_that_is_stopped_stays_and_the_others_go_on(states, perform, alone):
    stopped, *others = perform(
        states, stop_at=COMPARED, on_iteration=lambda index, done, *_: index == 0 and done == 2
    )
    assert stopped.interrupted and stopped.iterations == int(stopped.state.iteration) == 2
    (expected,) = perform([states[0]], stop_at=2)
    assert_same_object(stopped, expected)
    for got, expected in zip(others, alone[1:], strict=True):
        assert_same_object(got, expected)


def test_one_that_diverges_ends_by_itself_beside_sound_ones(states, perform):
    broken = with_scene(states[1], sh=jnp.full_like(states[1].scene.gaussians.sh, jnp.nan))
    seen = []

    def watch(index, done, numbers, state):
        seen.append((index, numbers["skipped"]))

    first, diverged, last = perform([states[0], broken, states[2]], on_iteration=watch)
    assert diverged.diverged and diverged.iterations == MOST_SKIPPED == int(diverged.state.iteration)
    assert [index for index, skipped in seen if skipped] == [1] * MOST_SKIPPED
    (expected,) = perform([broken])
    assert expected.iterations == MOST_SKIPPED
    np.testing.assert_array_equal(diverged.object.positions, expected.object.positions)
    for result in (first, last):
        assert result.iterations == MOST_SKIPPED + 2 and not result.diverged
        chex.assert_tree_all_finite(result.object)


def test_where_one_overflows_all_repeat_with_a_longer_buffer(states, task, perform, alone):
    # Not enough for splats of one seed that cover the whole picture; it grows to the others' length.
    small = dataclasses.replace(task, config=with_overrides(task.config, {"scene.buffer_capacity": 158}))
    sizes = jnp.full_like(states[1].scene.gaussians.log_scales, jnp.log(1.0))
    begun = [states[0], with_scene(states[1], log_scales=sizes), states[2]]
    told = []

    def watch(index, done, numbers, state):
        told.append((done, index, numbers["overflow"], numbers["intersections"]))

    together = perform(begun, task=small, stop_at=1, on_iteration=watch)
    assert [(done, index, overflow) for done, index, overflow, _ in told] == [(1, 0, 0), (1, 1, 0), (1, 2, 0)]
    needed = [intersections for *_, intersections in told]
    assert needed[1] > 158 > max(needed[0], needed[2])
    for got, state in zip(together, begun, strict=True):
        assert got.task == task
        (expected,) = perform([state], stop_at=1)
        assert_same_object(got, expected)


def test_runs_that_have_come_differently_far_do_not_go_together(states, perform):
    with pytest.raises(ValueError, match=r"equally far step together, not \[0, 3\]"):
        perform([states[0], states[1].replace(iteration=jnp.int32(3))])


def test_a_splats_noise_does_not_depend_on_how_many_others_there_is_room_for(task, states):
    state = states[0]
    longer = state.with_scene(*task.scene.resized(state.scene, state.moments, {"gaussians.mask": (2 * 48,)}))
    short, long = (
        draw_by_view(task.scene, jax.random.key(4), one.scene, 2).per_view["scale_noise"]
        for one in (state, longer)
    )
    assert short.shape == (2, 48, 3) and long.shape == (2, 96, 3)
    assert len(np.unique(short)) == short.size
    np.testing.assert_array_equal(long[:, :48], short)


def _digamma(model, x, t, text, adapter=None):
    """A network that a program shows by its one special function."""
    return jax.lax.digamma(jnp.abs(x) + 1.0)


def _network_calls(jaxpr, is_conditional=False):
    """Whether each call of the network lies under a condition; conditions are scalars."""
    calls = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "digamma":
            calls.append(is_conditional)
        if equation.primitive.name == "cond":
            assert equation.invars[0].aval.shape == ()
        inner = is_conditional or equation.primitive.name == "cond"
        for sub in jaxprs_in_params(equation.params):
            calls += _network_calls(sub, inner)
    return calls


def _calls(config, states, prompted):
    task = Distillation(config, predict=_digamma)
    together = partial(_step_together, task=task, mesh=batch_mesh(2, seeds=2))
    single = partial(_step, task=task, mesh=batch_mesh(2))
    running = np.ones(2, bool)
    return (
        _network_calls(jax.make_jaxpr(single)(states[0], prompted).jaxpr),
        _network_calls(jax.make_jaxpr(together)(tuple(states), running, prompted).jaxpr),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_no_seed_asks_the_network_for_idle_nodes(name, tiny_config, tiny_model, prompted):
    views = max(2, LOSSES[name].views_together * 2)
    settings = {"guidance.kind": name, "views": views, "flip_probability": 0.0, "shared_nodes": True}
    config = with_overrides(tiny_config, settings)
    states = [begin(config, tiny_model, jax.random.key(seed)) for seed in (0, 1)]
    single, together = _calls(config, states, prompted)
    assert together == single != []
    if name == "ge3d":
        assert all(together)
        # With nodes of their own, both sides of every condition would be computed for every seed.
        _, apart = _calls(with_overrides(config, {"shared_nodes": False}), states, prompted)
        assert apart and not any(apart)


def _learned_moments(shared, tiny_config, prompted):
    """Adam's first moments of what VSD learns in one step of two seeds that begin with the same network."""
    settings = {"guidance.kind": "vsd", "flip_probability": 0.0, "shared_nodes": True}
    config = with_overrides(tiny_config, settings | {"guidance.shared": shared})
    states = [begin(config, prompted.model, jax.random.key(seed)) for seed in (0, 1)]
    # A copy: the step takes over the memory of each state.
    states[1] = states[1].replace(learned=jax.tree.map(jnp.copy, states[0].learned))
    mesh = batch_mesh(2, seeds=2)
    placed = jax.device_put((tuple(states), np.ones(2, bool), prompted), replicated(mesh))
    after, _ = make_step(Distillation(config, predict), mesh, runs=2)(*placed)
    learned = [jax.tree.leaves(state.learned) for state in after]
    chex.assert_tree_all_finite(learned)
    moments = [jax.tree.leaves(optax.tree.get(state.learned_optimizer_state, "mu")) for state in after]
    return learned, [np.concatenate([np.ravel(leaf) for leaf in leaves]) for leaves in moments]


def test_what_a_loss_learns_is_each_ones_own_or_of_all_together(tiny_config, prompted):
    learned, own = _learned_moments(False, tiny_config, prompted)
    assert relative_error(own[0], own[1]) > 0.01
    assert any(not np.array_equal(one, other) for one, other in zip(*learned, strict=True))
    learned, shared = _learned_moments(True, tiny_config, prompted)
    chex.assert_trees_all_equal(*learned)
    np.testing.assert_array_equal(*shared)
    assert relative_error(shared[0], (own[0] + own[1]) / 2) < 1e-4


def test_eight_devices_do_what_one_does():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.eight_devices"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["devices"] == {"seeds": 4, "batch": 2}
    assert max(told["errors"]) < 1e-4 and len(told["errors"]) == 4
