"""Runs that step together: each gives the same result as on its own, regardless of the others."""

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
import pytest
from jax.extend.core import jaxprs_in_params

from ge3d_jax.core.devices import batch_mesh
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.training.checkpoints import restore_state, save_state
from ge3d_jax.training.distillation import Distillation, begin, draw_by_view
from ge3d_jax.training.iterations import MOST_SKIPPED, iterate_together
from ge3d_jax.training.step import _step, _step_together
from tests.errors import relative_error
from tests.training.toy_task import LONG, SHORT, ToyScene, ToyTask, begin_toy

ROOT = Path(__file__).parent.parent.parent
STARTS = ([0.5, -0.2, 0.9], [-0.5, 0.3, 2.0], [0.1, 0.2, -1.0])


def perform(states, *, task, context=None, **options):
    context = jnp.float32(0.5) if context is None else context
    return iterate_together(states, context, task, parts=2, **options)


@pytest.fixture(scope="module")
def toy():
    return ToyTask()


@pytest.fixture(scope="module")
def toys(toy):
    return [begin_toy(toy, start, seed) for seed, start in enumerate(STARTS)]


@pytest.fixture(scope="module")
def alone(toys, toy):
    return [perform([state], task=toy)[0] for state in toys]


def assert_same(got, expected):
    assert (got.iterations, got.interrupted, got.diverged) == (
        expected.iterations,
        expected.interrupted,
        expected.diverged,
    )
    np.testing.assert_allclose(got.object, expected.object, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.state.learned["w"], expected.state.learned["w"], rtol=1e-5)
    assert int(got.state.iteration) == got.iterations


def test_seeds_of_ge3d_together_are_what_each_is_alone(tiny_config, prompted):
    def predict(model, x, t, text):
        """A smooth function of all network inputs, which compiles faster than a network."""
        times = jnp.broadcast_to(t, x.shape[:1])[:, None, None, None] / 1000.0
        return jnp.tanh(x) * (0.5 + times) + jnp.tanh(text[:, :1, :4])[:, None] * jnp.cos(3.0 * x)

    # Splats are added after the second iteration, and opacities are reset after the third.
    task = Distillation(with_overrides(tiny_config, {"shared_nodes": True}), predict)
    states = [begin(task.config, prompted.model, jax.random.key(seed)) for seed in (0, 1, 2)]
    together, programs = perform(states, task=task, context=prompted), {}
    for state, got in zip(states, together, strict=True):
        (expected,) = perform([state], task=task, context=prompted, programs=programs)
        assert got.iterations == 4 and not got.interrupted and not got.diverged
        np.testing.assert_array_equal(got.object.mask, expected.object.mask)
        used = np.asarray(expected.object.mask)
        for field in ("positions", "log_scales", "opacity_logits", "sh"):
            one, other = (np.asarray(getattr(each.object, field))[used] for each in (got, expected))
            assert relative_error(one, other) < 1e-4, field
    # All runs used the same program.
    assert len(programs) == 1
    assert relative_error(together[0].object.sh, together[1].object.sh) > 0.01


def test_runs_keep_in_step_and_are_what_each_is_alone(toys, toy, alone):
    told = []
    together = perform(toys, task=toy, on_iteration=lambda index, done, *_: told.append((done, index)))
    assert told == [(done, index) for done in range(1, toy.iterations + 1) for index in range(3)]
    for got, expected in zip(together, alone, strict=True):
        assert_same(got, expected)


def test_arrays_are_as_long_as_the_fullest_needs(toys, toy, alone):
    together = perform(toys, task=toy)
    assert [result.object.size for result in alone] == [LONG, SHORT, LONG]
    assert [result.object.size for result in together] == [LONG, SHORT, LONG]
    assert {result.state.scene["x"].size for result in together} == {LONG}


def test_a_run_that_is_stopped_stays_and_the_others_go_on(toys, toy, alone):
    stopped, *others = perform(toys, task=toy, on_iteration=lambda index, done, *_: index == 0 and done == 3)
    (expected,) = perform([toys[0]], task=toy, on_iteration=lambda index, done, *_: done == 3)
    assert stopped.interrupted and stopped.iterations == 3
    assert_same(stopped, expected)
    for got, expected in zip(others, alone[1:], strict=True):
        assert_same(got, expected)


def test_one_that_diverges_ends_by_itself_beside_sound_ones(toys, toy, alone):
    broken = begin_toy(toy, [0.1, np.nan, 0.2], 1)
    seen = []

    def watch(index, done, numbers, state):
        seen.append((index, numbers["skipped"]))

    first, diverged, last = perform([toys[0], broken, toys[2]], task=toy, on_iteration=watch)
    assert diverged.diverged and diverged.iterations == MOST_SKIPPED < toy.iterations
    assert [index for index, skipped in seen if skipped] == [1] * MOST_SKIPPED
    np.testing.assert_array_equal(diverged.object[:SHORT], broken.scene["x"])
    assert_same(first, alone[0])
    assert_same(last, alone[2])


def test_where_one_overflows_all_repeat_with_a_longer_buffer(toys, toy):
    far = begin_toy(toy, [0.1, 9.5, 0.2], 1)
    states = [toys[0], far, toys[2]]
    told = []

    def watch(index, done, numbers, state):
        told.append((done, index, numbers["overflow"], numbers["intersections"]))

    together = perform(states, task=toy, stop_at=2, on_iteration=watch)
    assert told == [(done, index, 0, (1, 10, 1)[index]) for done in (1, 2) for index in range(3)]
    for got, state in zip(together, states, strict=True):
        assert got.task.scene == ToyScene(buffer=10)
        assert_same(got, perform([state], task=toy, stop_at=2)[0])


def test_nothing_waits_for_the_buffer_of_one_that_has_stopped(toys, toy):
    # It would outgrow its buffer in the second iteration, but has stopped by then.
    leaving = begin_toy(toy, [-3.95, 0.1, 0.2], 1)
    context = jnp.float32(-9.0)
    leaves = perform([leaving], task=toy, context=context, stop_at=2)[0]
    assert leaves.task.scene.buffer == 5
    stopped, _ = perform(
        [leaving, toys[1]],
        task=toy,
        context=context,
        stop_at=2,
        on_iteration=lambda index, done, *_: index == 0,
    )
    assert stopped.iterations == 1 and stopped.task.scene.buffer == 4


@pytest.mark.parametrize("broken", [False, True])
def test_what_is_learned_is_each_ones_own_or_of_all_that_count(broken, toys, toy):
    second = begin_toy(toy, [0.1, np.nan, 0.2], 1) if broken else toys[1]
    states = [toys[0], second, toys[2]]
    own = [float(perform([state], task=toy, stop_at=1)[0].state.learned["w"]) for state in states]
    assert own[0] != own[2] and (own[1] == 0.0) == broken
    shared = perform(states, task=dataclasses.replace(toy, shares_learned=True), stop_at=1)
    counted = [own[0], own[2]] if broken else own
    for result in shared:
        assert float(result.state.learned["w"]) == pytest.approx(np.mean(counted), rel=1e-5)
    # A second step continues from the shared values.
    twice = perform(states, task=dataclasses.replace(toy, shares_learned=True), stop_at=2)
    assert len({float(result.state.learned["w"]) for result in twice}) == 1


def test_vsd_shares_its_network_where_it_is_told(tiny_config):
    for shared in (False, True):
        settings = {"guidance.kind": "vsd", "guidance.shared": shared, "flip_probability": 0.0}
        assert Distillation(with_overrides(tiny_config, settings)).shares_learned == shared
    assert not Distillation(tiny_config).shares_learned


def test_a_state_of_one_of_several_processes_is_its_own(toys, toy, tmp_path, monkeypatch):
    (stopped,) = perform([toys[0]], task=toy, stop_at=3)
    with monkeypatch.context() as patch:
        # Orbax would write the data on the devices of all processes.
        patch.setattr(jax, "process_count", lambda: 2)
        save_state(tmp_path / "state", stopped.state)
    template = begin_toy(toy, [0.0, 0.0, 0.0], 9)
    restored = restore_state(tmp_path / "state", template, toy.scene)
    chex.assert_trees_all_equal(restored, stopped.state)
    assert restored.scene["x"].size == LONG and list(tmp_path.iterdir()) == [tmp_path / "state"]
    other = template.replace(learned={"v": jnp.zeros(())})
    with pytest.raises(UserError, match=r"does not fit this run \(learned.v is None"):
        restore_state(tmp_path / "state", other, toy.scene)


def test_runs_that_have_come_differently_far_do_not_go_together(toys, toy):
    with pytest.raises(ValueError, match=r"at the same iteration can step together, not \[0, 3\]"):
        perform([toys[0], toys[1].replace(iteration=jnp.int32(3))], task=toy)


def test_a_splats_noise_does_not_depend_on_how_many_others_there_is_room_for(tiny_config, tiny_model):
    scene = tiny_config.scene
    state = begin(tiny_config, tiny_model, jax.random.key(0))
    longer, _ = scene.resized(state.scene, state.moments, {"gaussians.mask": (2 * 48,)})
    short, long = (
        draw_by_view(scene, jax.random.key(4), one, 2).per_view["scale_noise"]
        for one in (state.scene, longer)
    )
    assert short.shape == (2, 48, 3) and long.shape == (2, 96, 3)
    assert len(np.unique(short)) == short.size
    np.testing.assert_array_equal(long[:, :48], short)


def _digamma(model, x, t, text, adapter=None):
    """A network that is identifiable in a program by its special function."""
    return jax.lax.digamma(jnp.abs(x) + 1.0)


def _network_calls(jaxpr, is_conditional=False):
    """Whether each network call is inside a conditional; conditions are scalars."""
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


def _calls_alone(config, state, prompted):
    step = partial(_step, task=Distillation(config, predict=_digamma), mesh=batch_mesh(2))
    return _network_calls(jax.make_jaxpr(step)(state, prompted).jaxpr)


def _calls_together(config, states, prompted):
    task, mesh = Distillation(config, predict=_digamma), batch_mesh(2, seeds=2)
    step = partial(_step_together, task=task, mesh=mesh)
    return _network_calls(jax.make_jaxpr(step)(tuple(states), np.ones(2, bool), prompted).jaxpr)


@pytest.mark.parametrize("name", LOSSES)
def test_no_seed_asks_the_network_for_idle_nodes(name, tiny_config, tiny_model, prompted):
    views = max(2, LOSSES[name].views_together * 2)
    settings = {"guidance.kind": name, "views": views, "flip_probability": 0.0, "shared_nodes": True}
    config = with_overrides(tiny_config, settings)
    states = [begin(config, tiny_model, jax.random.key(seed)) for seed in (0, 1)]
    alone = _calls_alone(config, states[0], prompted)
    assert alone
    # Without conditionals, there are no idle nodes.
    if any(alone):
        assert _calls_together(config, states, prompted) == alone
    assert all(alone) or name != "ge3d"


def test_with_nodes_of_their_own_all_seeds_would_compute_idle_nodes(tiny_config, tiny_model, prompted):
    states = [begin(tiny_config, tiny_model, jax.random.key(seed)) for seed in (0, 1)]
    calls = _calls_together(with_overrides(tiny_config, {"flip_probability": 0.0}), states, prompted)
    assert calls and not any(calls)


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
