"""Edits that compare with the source: its views use the same cameras and random draws."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.guidance.base import Progress
from ge3d_jax.scenes.base import Renders
from ge3d_jax.scenes.splat_state import with_capacity
from ge3d_jax.training.distillation import Distillation, Prompted, begin, prompt_embeddings, with_room_for
from ge3d_jax.training.step import train_step
from tests.errors import relative_error
from tests.training.conftest import PROMPT
from tests.training.fakes import predict

FIELDS = ("positions", "log_scales", "quaternions", "opacity_logits", "sh")
PROGRESS = Progress(0, 4)


@pytest.fixture(scope="module")
def task(tiny_config):
    settings = {"guidance.inversion": "delta", "flip_probability": 0.5, "picture_weight": 0.3}
    return Distillation(with_overrides(tiny_config, settings), predict)


@pytest.fixture(scope="module")
def state(task, tiny_model):
    return begin(task.config, tiny_model, jax.random.key(0))


@pytest.fixture(scope="module")
def context(task, tiny_model, state):
    """A context whose source is the run's start, and whose prompt describes it."""
    embeddings = prompt_embeddings(task.config, tiny_model, PROMPT, PROMPT)
    return Prompted(tiny_model, embeddings, jax.tree.map(jnp.copy, state.scene))


@pytest.fixture(scope="module")
def step(task):
    return jax.jit(partial(train_step, task=task))


@pytest.fixture(scope="module")
def look(task):
    """The results for a scene's views: the scalar, its metrics and the required buffer size."""

    @jax.jit
    def look(scene, context, drawn):
        perturbations = task.scene.perturbations(scene, task.views)
        scalar, numbers, renders = task.look(scene, (), perturbations, context, drawn, PROGRESS, None)
        return numbers, renders.needed, renders.overflow

    return look


def first_moments(state):
    return max(float(jnp.abs(moment).max()) for moment in state.optimizer_state.mu.values())


def moved(scene, offset):
    gaussians = dataclasses.replace(scene.gaussians, positions=scene.gaussians.positions + offset)
    return dataclasses.replace(scene, gaussians=gaussians)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_source_that_is_to_stay_what_it_is_stays(task, state, context, step, seed):
    state = state.replace(key=jax.random.key(seed))
    drawn = task.draw(state, context)
    after, numbers = step(state, context, drawn)
    assert float(numbers["gradient_norm"]) < 1e-5 and float(numbers["loss"]) < 1e-8
    assert int(after.iteration) == 1
    # Neither the latents nor the pictures move the scene, and nothing else does.
    other = dataclasses.replace(context, source=moved(state.scene, 0.2))
    changed, _ = step(state, other, drawn)
    assert first_moments(after) < 1e-3 * first_moments(changed)


def test_what_has_been_changed_is_led_back(task, state, context, step):
    """The source stays the same, regardless of the run's current state."""
    changed = state.replace(scene=moved(state.scene, 0.2))
    drawn = task.draw(changed, context)
    _, numbers = step(changed, context, drawn)
    assert float(numbers["gradient_norm"]) > 0.01
    other = dataclasses.replace(context, source=changed.scene)
    _, numbers = step(changed, other, drawn)
    assert float(numbers["gradient_norm"]) < 1e-5


def test_the_source_is_seen_as_the_scene_would_be(task, state, context):
    """With the same cameras, backgrounds, mirroring, scale noise and encoder noise."""
    for seed in range(4):
        drawn = task.draw(state.replace(key=jax.random.key(seed)), context)
        seen = task.see(state.scene, task.scene.perturbations(state.scene, 2), context, drawn, PROGRESS)
        source = task.see_source(context, drawn, PROGRESS)
        for name in ("images", "latents"):
            np.testing.assert_array_equal(getattr(source, name), getattr(seen, name))


def test_a_scene_that_has_grown_has_the_same_source(task, state, context, look):
    grown, _ = with_capacity(state.scene, state.moments, 2 * state.scene.gaussians.capacity)
    drawn = task.draw(state.replace(scene=grown), context)
    numbers, *_ = look(grown, context, drawn)
    assert float(jnp.max(numbers["loss"])) < 1e-6
    numbers, *_ = look(moved(grown, 0.2), context, drawn)
    assert float(jnp.min(numbers["loss"])) > 1e-4


def test_the_buffer_holds_the_source_too(task, state, context, look):
    drawn = task.draw(state, context)
    tiny = dataclasses.replace(
        state.scene,
        gaussians=dataclasses.replace(
            state.scene.gaussians, mask=jnp.zeros_like(state.scene.gaussians.mask).at[0].set(True)
        ),
    )
    _, needed, overflow = look(tiny, context, drawn)
    _, as_much, _ = look(state.scene, context, drawn)
    np.testing.assert_array_equal(needed, as_much)
    assert np.all(np.asarray(overflow) == 0)
    large = dataclasses.replace(context, source=tiny)
    np.testing.assert_array_equal(look(state.scene, large, drawn)[1], as_much)
    assert np.all(np.asarray(look(tiny, large, drawn)[1]) < as_much)


def test_what_either_of_both_lacks_is_lacking():
    own, others = (
        Renders(jnp.full((2, 1, 1, 3), value), None, jnp.array(needed), jnp.array(overflow))
        for value, needed, overflow in ((0.1, [5, 9], [0, 4]), (0.2, [7, 3], [2, 0]))
    )
    both = with_room_for(own, others)
    np.testing.assert_array_equal(both.needed, [7, 9])
    np.testing.assert_array_equal(both.overflow, [2, 4])
    np.testing.assert_array_equal(both.rgb, own.rgb)


def test_no_gradient_goes_into_the_source(task, state, context):
    drawn = task.draw(state, context)

    def brightness(offset):
        source = moved(state.scene, offset)
        return jnp.sum(task.see_source(dataclasses.replace(context, source=source), drawn, PROGRESS).latents)

    assert float(jax.grad(brightness)(jnp.float32(0.0))) == 0.0


def test_other_inversions_do_not_look_at_the_source(task, state, context):
    plain = Distillation(with_overrides(task.config, {"guidance.inversion": "direct"}), predict)
    drawn = plain.draw(state, context)
    without = dataclasses.replace(context, source=None)
    after, _ = jax.jit(partial(train_step, task=plain))(state, without, drawn)
    other, _ = jax.jit(partial(train_step, task=plain))(state, context, drawn)
    for field in FIELDS:
        np.testing.assert_array_equal(
            getattr(after.scene.gaussians, field), getattr(other.scene.gaussians, field)
        )
    assert relative_error(after.scene.gaussians.sh, state.scene.gaussians.sh) > 0.0
    with pytest.raises(UserError, match="this run edits none"):
        task.see_source(without, drawn, PROGRESS)
