"""The task of a fit: its random draws over a run, and how its terms add up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.settings import with_overrides
from ge3d_jax.formats.posed_images import PosedImages
from ge3d_jax.guidance.base import Progress
from ge3d_jax.splatting.cameras import orbit_camera
from ge3d_jax.training.fit_config import FitConfig
from ge3d_jax.training.photometric import Photometric, Views, begin_fit, views_of

COUNT, WIDTH, HEIGHT = 6, 16, 12


@pytest.fixture(scope="module")
def task():
    changes = {
        "views": 2,
        "start.count": 5,
        "start.scale": 0.2,
        "start.sh_degree": 0,
        "scene.capacity": 5,
        "scene.scale_penalty": 3.0,
        "buffer_capacity": 64,
    }
    return Photometric(with_overrides(FitConfig(), changes))


@pytest.fixture(scope="module")
def state(task):
    return begin_fit(task.config, jax.random.key(0))


@pytest.fixture(scope="module")
def views():
    """Gray images, each of its own shade, from cameras around the object."""
    cameras = jax.vmap(
        lambda azimuth: orbit_camera(azimuth=azimuth, polar=1.2, radius=3.0, fov=0.6, size=(WIDTH, HEIGHT))
    )(jnp.arange(COUNT, dtype=jnp.float32))
    shades = (40 * jnp.arange(COUNT)).astype(jnp.uint8)[:, None, None, None]
    pixels = jnp.broadcast_to(shades, (COUNT, HEIGHT, WIDTH, 4)).at[..., 3].set(255)
    return Views(pixels, cameras.world_to_camera, cameras.intrinsics[0])


@pytest.fixture(scope="module")
def drawn(task, state, views):
    """What each of nine iterations draws."""
    draw = jax.jit(lambda iteration: task.draw(state.replace(iteration=iteration), views).per_view)
    return [draw(jnp.int32(iteration)) for iteration in range(9)]


def test_every_image_is_seen_once_before_any_is_seen_again(drawn):
    shades = np.concatenate([per_view["pixels"][:, 0, 0, 0] for per_view in drawn]).reshape(3, COUNT)
    np.testing.assert_array_equal(np.sort(shades, axis=1), [40 * np.arange(COUNT)] * 3)


def test_images_come_with_their_own_cameras(drawn, views):
    for per_view in drawn:
        index = np.asarray(per_view["pixels"][:, 0, 0, 0]) // 40
        np.testing.assert_array_equal(per_view["world_to_camera"], views.world_to_camera[index])


def test_every_iteration_has_backgrounds_and_random_changes_of_its_own(task, state, drawn):
    colors = np.concatenate([per_view["backgrounds"] for per_view in drawn])
    random = colors[~np.all(colors == 1, axis=1)]
    assert 3 < len(random) == len(np.unique(random, axis=0))
    keys = [task.update_key(state.replace(iteration=jnp.int32(iteration))) for iteration in range(4)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4


def test_images_may_be_wider_than_high(task, views):
    assert task.image_size(views) == (WIDTH, HEIGHT)


def test_more_views_do_not_change_how_much_the_penalty_counts(task, state, views, drawn):
    """Twice the same views give twice the objective, images and penalty alike."""

    @jax.jit
    def look(per_view):
        perturbations = task.scene.perturbations(state.scene, per_view["pixels"].shape[0])
        draws = dataclasses.replace(task.draw(state, views), per_view=per_view)
        scalar, numbers, _ = task.look(state.scene, (), perturbations, views, draws, Progress(0, 9), None)
        return scalar, numbers["loss"]

    scalar, losses = look(drawn[0])
    twice, _ = look(jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), drawn[0]))
    assert float(twice) == pytest.approx(2 * float(scalar), rel=1e-5)
    # Each view adds the mean scale, 0.2, times its weight.
    assert float(scalar - jnp.sum(losses)) == pytest.approx(2 * 3.0 * 0.2, rel=1e-4)


def test_other_units_of_length_leave_the_given_images_alone():
    pose = np.eye(4, dtype=np.float32)
    pose[:3, 3] = 1.0, 2.0, 3.0
    given = PosedImages(
        pixels=np.zeros((1, HEIGHT, WIDTH, 4), np.uint8),
        world_to_camera=pose[None].copy(),
        intrinsics=np.ones(4, np.float32),
        names=("one",),
    )
    np.testing.assert_allclose(views_of(given, 2.0).world_to_camera[0, :3, 3], [0.5, 1.0, 1.5])
    np.testing.assert_array_equal(given.world_to_camera[0], pose)
