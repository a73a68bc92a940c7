"""Invariances of every loss: devices, joint seeds, and the number of views at a time do not matter."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ge3d_jax.core.devices import batch_mesh
from ge3d_jax.core.random import Draws
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.guidance.base import DrawKeys, Progress, SeenViews
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.splatting.cameras import orbit_camera
from ge3d_jax.training.checkpoints import restore_state, save_state
from ge3d_jax.training.distillation import Distillation, begin
from ge3d_jax.training.presets import configured
from tests.training.fakes import predict

# Two groups, each with the largest number of views that any loss processes together.
VIEWS = 8
SHAPE = (VIEWS, 4, 4, 4)
# Guidance scales of 50 to 100 magnify rounding errors of differences between nearby predictions.
TOLERANCES = {"cds": 3e-4, "sdi": 3e-4}


def assert_close(case, got, expected):
    """Assert equality up to rounding of each array's largest entry, because losses subtract close numbers."""
    chex.assert_trees_all_equal_shapes(got, expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert float(jnp.abs(one - other).max()) <= case.tolerance * float(jnp.abs(other).max())


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss with all of its inputs except the latents."""

    loss: object
    learned: object
    text: ViewTexts
    cameras: object
    model: object
    progress: Progress
    tolerance: float

    def draw(self, seed):
        keys = DrawKeys(*jax.random.split(jax.random.key(seed), 3))
        return self.loss.draw(keys, self.progress, SHAPE)

    def gradients(self, z, drawn, text, cameras, *, at_a_time=None, axis=None):
        """The gradients of the latents and of the learned parameters, and the loss's metrics."""
        denoiser = Denoiser(self.model, self.model.schedule, at_a_time or z.shape[0], predict)

        def scalar(z, learned):
            seen = SeenViews(z, cameras, VIEWS, axis)
            return self.loss(learned, seen, text, drawn, denoiser, self.progress)

        (of_z, of_learned), numbers = jax.grad(scalar, argnums=(0, 1), has_aux=True)(z, self.learned)
        if axis is not None:
            of_learned = jax.lax.psum(of_learned, axis)
        return of_z, of_learned, numbers


@pytest.fixture(scope="module", params=[(name, True) for name in LOSSES] + [("ge3d", False), ("sds", False)])
def case(request, tiny_model):
    name, has_perp_neg = request.param
    loss = configured("toybox", guidance=name).guidance
    avoided = 2 if has_perp_neg else 0
    values = jax.random.normal(jax.random.key(1), (VIEWS * 3 + 3, 12, 8))
    text = ViewTexts(
        positive=values[:VIEWS],
        avoided=values[VIEWS : 3 * VIEWS].reshape(VIEWS, 2, 12, 8)[:, :avoided],
        weights=jnp.full((VIEWS, avoided), -0.5),
        negative=values[-3],
        empty=values[-2],
        plain=values[-1],
    )
    cameras = jax.vmap(
        lambda azimuth: orbit_camera(azimuth=azimuth, polar=1.2, radius=3.0, fov=0.5, size=16)
    )(jnp.arange(VIEWS) * 0.7)
    learned = loss.begin(jax.random.key(2), tiny_model)
    return Case(
        loss, learned, text, cameras, tiny_model, Progress(jnp.int32(40), 250), TOLERANCES.get(name, 5e-5)
    )


@pytest.fixture(scope="module")
def latents():
    return jax.random.normal(jax.random.key(3), SHAPE)


@pytest.fixture(scope="module")
def alone(case, latents):
    """Results on one device with all views at once, for two seeds."""
    look = jax.jit(partial(case.gradients, text=case.text, cameras=case.cameras))
    return [look(latents, case.draw(seed)) for seed in (0, 1)]


def test_it_is_finite_and_goes_by_what_was_drawn(alone, latents):
    for of_z, of_learned, numbers in alone:
        chex.assert_tree_all_finite((of_z, of_learned, numbers))
        assert float(jnp.abs(of_z).max()) > 0 and of_z.shape == latents.shape
        assert numbers["loss"].shape == (VIEWS,)
        np.testing.assert_allclose(numbers["gradient_norm"], jnp.linalg.norm(of_z), rtol=1e-4)
    assert not np.allclose(alone[0][0], alone[1][0])


def test_two_devices_say_what_one_does(case, latents, alone):
    mesh = batch_mesh(2)
    assert mesh.size == 2
    own, shared = PartitionSpec(mesh.axis_names[0]), PartitionSpec()
    of_text = ViewTexts(own, own, own, shared, shared, shared)
    of_numbers = {name: own if value.ndim else shared for name, value in alone[0][2].items()}
    look = jax.shard_map(
        partial(case.gradients, axis=mesh.axis_names[0]),
        mesh=mesh,
        in_specs=(own, Draws(shared=shared, per_view=own), of_text, own),
        out_specs=(own, shared, of_numbers),
        check_vma=False,
    )
    got = jax.jit(look)(latents, case.draw(0), case.text, case.cameras)
    assert_close(case, got, alone[0])


def test_vmap_over_seeds_equals_a_loop(case, latents, alone):
    drawn = jax.tree.map(lambda *leaves: jnp.stack(leaves), case.draw(0), case.draw(1))
    look = partial(case.gradients, latents, text=case.text, cameras=case.cameras)
    got = jax.jit(jax.vmap(look))(drawn)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    assert_close(case, got, expected)


def test_views_in_turn_are_as_all_at_once(case, latents, alone):
    look = partial(case.gradients, text=case.text, cameras=case.cameras, at_a_time=2)
    got = jax.jit(look)(latents, case.draw(0))
    assert_close(case, got, alone[0])


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_saved_run_goes_on_with_is_what_it_would_have_had(name, tiny_config, prompted, tmp_path):
    # A loss is a function of its draws, the iteration, its learned parameters and its inputs.
    together = LOSSES[name].views_together
    settings = {"guidance.kind": name, "views": max(2, together), "flip_probability": 0.0}
    task = Distillation(with_overrides(tiny_config, settings))
    state, template = (begin(task.config, prompted.model, jax.random.key(seed)) for seed in (0, 1))
    # Committed to its device like a restored state, so that the draws are compiled once for both.
    state = jax.device_put(state.replace(iteration=jnp.int32(2)), jax.devices()[0])
    save_state(tmp_path / "state", state)
    restored = restore_state(tmp_path / "state", template, task.scene)
    chex.assert_trees_all_equal(restored, state)
    draw = jax.jit(lambda state: task.draw(state, prompted))
    chex.assert_trees_all_equal(draw(restored), draw(state))
