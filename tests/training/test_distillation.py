"""Random draws of a run: from its own seed, or at first from another seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.settings import with_overrides
from ge3d_jax.training.distillation import Distillation, begin
from ge3d_jax.training.iterations import iterate_together
from tests.errors import relative_error
from tests.training.fakes import predict

FIRST, OTHER = 3, 5
FIELDS = ("positions", "log_scales", "opacity_logits", "sh")


def task_of(config, **changes):
    # Splats are added after the second iteration, at random positions.
    return Distillation(with_overrides(config, {"shared_nodes": True, **changes}), predict)


@pytest.fixture(scope="module")
def parting(tiny_config):
    """A task whose first three of four iterations use the first seed."""
    return task_of(tiny_config, first_seed=FIRST, first_seed_share=0.75)


def first_state(task, prompted, seed):
    return begin(task.config, prompted.model, jax.random.key(seed))


def at(state, iteration):
    return state.replace(iteration=jnp.int32(iteration))


def test_a_run_has_its_own_key_unless_told_otherwise(tiny_config, prompted):
    task = task_of(tiny_config)
    for iteration in (0, 3):
        state = at(first_state(task, prompted, OTHER), iteration)
        assert task.run_key(state) == state.key


def test_the_first_seed_decides_the_start_and_as_many_iterations_as_asked(tiny_config, parting, prompted):
    of_first = first_state(task_of(tiny_config), prompted, FIRST)
    own = first_state(task_of(tiny_config), prompted, OTHER)
    parted = first_state(parting, prompted, OTHER)
    np.testing.assert_array_equal(parted.scene.gaussians.positions, of_first.scene.gaussians.positions)
    assert parted.key == own.key != of_first.key
    keys = [parting.run_key(at(parted, iteration)) for iteration in range(4)]
    assert keys == [of_first.key] * 3 + [own.key]
    plain = task_of(tiny_config)
    for iteration, expected in ((2, of_first), (3, own)):
        assert parting.update_key(at(parted, iteration)) == plain.update_key(at(expected, iteration))


def test_the_share_of_the_first_seed_is_rounded(tiny_config, prompted):
    state = first_state(task_of(tiny_config), prompted, OTHER)
    # Out of four iterations; the default is one half.
    for given, expected in (
        ({"first_seed_share": 0.0}, 0),
        ({}, 2),
        ({"first_seed_share": 0.6}, 2),
        ({"first_seed_share": 0.7}, 3),
        ({"first_seed_share": 1.0}, 4),
    ):
        task = task_of(tiny_config, first_seed=FIRST, **given)
        is_own = [bool(task.run_key(at(state, iteration)) == state.key) for iteration in range(4)]
        assert is_own == [False] * expected + [True] * (4 - expected), given


@pytest.mark.parametrize(("iteration", "seed"), [(2, FIRST), (3, OTHER)])
def test_what_is_drawn_is_of_that_seed(tiny_config, prompted, iteration, seed):
    # This loss has noise that stays the same throughout a run.
    settings = {"guidance.kind": "sctd", "picture_weight": 0.0}
    plain = task_of(tiny_config, **settings)
    parting = task_of(tiny_config, **settings, first_seed=FIRST, first_seed_share=0.75)
    drawn, expected = (
        task.draw(at(first_state(task, prompted, of), iteration), prompted)
        for task, of in ((parting, OTHER), (plain, seed))
    )
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)


def test_what_a_loss_learns_begins_as_the_first_seeds(tiny_config, prompted):
    settings = {"guidance.kind": "vsd", "picture_weight": 0.0, "flip_probability": 0.0}
    plain, parting = task_of(tiny_config, **settings), task_of(tiny_config, **settings, first_seed=FIRST)
    expected, got = (
        first_state(plain, prompted, FIRST).learned,
        first_state(parting, prompted, OTHER).learned,
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_seeds_part_from_one_object_which_is_the_first_seeds(tiny_config, parting, prompted):
    seen = {}

    def watch(index, done, numbers, state):
        seen[done, index] = {field: np.asarray(getattr(state.scene.gaussians, field)) for field in FIELDS}

    states = [first_state(parting, prompted, seed) for seed in (FIRST, OTHER)]
    one, other = iterate_together(states, prompted, parting, parts=2, on_iteration=watch)
    for field in FIELDS:
        for done in (1, 2, 3):
            assert relative_error(seen[done, 0][field], seen[done, 1][field]) < 1e-5, (field, done)
    assert relative_error(one.object.sh, other.object.sh) > 0.01
    plain = task_of(tiny_config)
    (alone,) = iterate_together([first_state(plain, prompted, FIRST)], prompted, plain, parts=2)
    used = np.asarray(alone.object.mask)
    np.testing.assert_array_equal(one.object.mask, used)
    for field in FIELDS:
        got, expected = (np.asarray(getattr(each.object, field))[used] for each in (one, alone))
        assert relative_error(got, expected) < 1e-4, field


def test_a_scene_is_changed_with_new_random_numbers_after_every_iteration(tiny_config, prompted):
    task = task_of(tiny_config)
    state = first_state(task, prompted, OTHER)
    keys = [jax.random.key_data(task.update_key(at(state, iteration))).tolist() for iteration in range(4)]
    assert len(set(map(tuple, keys))) == 4
