"""Learned parameters of a loss such as VSD: they train with the scene, also on two devices, and are saved.

A small function replaces the network; tests/guidance covers VSD's learning through a network.
"""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.devices import batch_mesh, replicated
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.training.checkpoints import restore_state, save_state
from ge3d_jax.training.distillation import Distillation, begin
from ge3d_jax.training.step import train_step
from tests.errors import relative_error
from tests.training.fakes import predict


@pytest.fixture(scope="module")
def config(tiny_config):
    chosen = {"views": 4, "flip_probability": 0.0, "guidance.kind": "vsd", "guidance.rank": 2}
    return with_overrides(tiny_config, chosen)


@pytest.fixture(scope="module")
def first(config, tiny_model):
    state = jax.jit(lambda seed: begin(config, tiny_model, jax.random.key(seed)))(0)
    # Committed to its device like a restored state, so that the step is compiled once for both.
    return jax.device_put(state, jax.devices()[0])


@pytest.fixture(scope="module")
def drawn(config, first, prompted):
    return jax.jit(lambda state: Distillation(config).draw(state, prompted))(first)


@pytest.fixture(scope="module")
def step(config):
    return jax.jit(partial(train_step, task=Distillation(config, predict)))


@pytest.fixture(scope="module")
def two_steps(step, first, prompted, drawn):
    """The states after one step and after two with the same draws, and the metrics of each."""
    states, numbers = [first], []
    for _ in range(2):
        state, measured = step(states[-1], prompted, drawn)
        states.append(state)
        numbers.append(measured)
    return states[1:], numbers


def _row(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _of_lora(state, name):
    flat = jax.tree.leaves_with_path(state.learned["lora"])
    return _row([leaf for path, leaf in flat if path[-1].key == name])


def test_a_step_moves_what_is_learned_beside_the_scene(first, two_steps):
    (once, twice), numbers = two_steps
    assert all(np.isfinite(each["loss_lora"]) and not each["skipped"] for each in numbers)
    assert not np.array_equal(once.scene.gaussians.positions, first.scene.gaussians.positions)
    assert not _of_lora(first, "up").any() and np.abs(_of_lora(once, "up")).max() > 0.9e-4
    assert not np.array_equal(_row(once.learned["camera"]), _row(first.learned["camera"]))
    # While the upper factors are zero, so is the gradient of the lower ones, which only decay.
    np.testing.assert_allclose(_of_lora(once, "down"), (1 - 1e-6) * _of_lora(first, "down"), rtol=1e-6)
    assert np.abs(_of_lora(twice, "down") - _of_lora(once, "down")).max() > 0.5e-4


def test_a_run_goes_on_from_what_was_saved_bit_by_bit(
    config, tiny_model, step, two_steps, prompted, drawn, tmp_path
):
    (once, twice), _ = two_steps
    save_state(tmp_path / "state", once)
    template = jax.jit(lambda seed: begin(config, tiny_model, jax.random.key(seed)))(7)
    restored = restore_state(tmp_path / "state", template, config.scene)
    assert not np.array_equal(_row(template.learned), _row(once.learned))
    chex.assert_trees_all_equal(restored, once)
    again, _ = step(restored, prompted, drawn)
    chex.assert_trees_all_equal(again, twice)


def test_views_in_turn_on_two_devices_learn_the_same(config, first, prompted, drawn, two_steps):
    (expected, _), (expected_numbers, _) = two_steps
    mesh = batch_mesh(2)
    assert mesh.size == 2
    # Each device has two views, one at a time.
    task = Distillation(with_overrides(config, {"views_per_batch": 2}), predict)
    placed = jax.device_put((first, prompted, drawn), replicated(mesh))
    got, numbers = jax.jit(partial(train_step, task=task, mesh=mesh))(*placed)
    for name in ("loss", "loss_lora", "gradient_norm"):
        assert float(numbers[name]) == pytest.approx(float(expected_numbers[name]), rel=1e-5)
    # Compare moments, because Adam's first step is the gradient's sign, regardless of its size.
    moments = [_row(state.learned_optimizer_state[0].mu) for state in (got, expected)]
    assert np.linalg.norm(moments[1]) > 0 and relative_error(*moments) < 1e-4


def test_of_a_bfloat16_network_all_that_is_learned_stays_float32(config, first, tiny_model, prompted, drawn):
    half = dataclasses.replace(
        tiny_model,
        unet=tiny_model.unet.clone(dtype=jnp.bfloat16),
        unet_params=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tiny_model.unet_params),
    )
    step = partial(train_step, task=Distillation(config))
    after, _ = jax.eval_shape(step, first, prompted.replace(model=half), drawn)
    kept = jax.tree.leaves(
        (after.learned, after.learned_optimizer_state[0].mu, after.learned_optimizer_state[0].nu)
    )
    assert {leaf.dtype for leaf in kept} == {jnp.dtype(jnp.float32)}
