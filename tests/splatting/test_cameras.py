"""Cameras: OpenCV axes, orbits, degenerate directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.splatting.cameras import (
    Camera,
    camera_center,
    look_at,
    opengl_camera_to_world,
    orbit_camera,
    polar_angles,
)


def pixel_of(camera: Camera, point) -> np.ndarray:
    x, y, z = np.asarray(camera.world_to_camera)[:3] @ np.array([*point, 1.0])
    focal_x, focal_y, center_x, center_y = np.asarray(camera.intrinsics)
    return np.array([focal_x * x / z + center_x, focal_y * y / z + center_y, z])


def test_the_front_camera_sees_y_to_the_right_and_z_up():
    camera = orbit_camera(azimuth=0.0, polar=np.pi / 2, radius=3.0, fov=0.5, size=(40, 20))
    np.testing.assert_allclose(camera_center(camera), [3.0, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(pixel_of(camera, [0, 0, 0]), [20.0, 10.0, 3.0], atol=1e-5)
    assert pixel_of(camera, [0, 0.1, 0])[0] > 20 and pixel_of(camera, [0, 0, 0.1])[1] < 10
    # The top of the image is half the vertical field of view above the center.
    np.testing.assert_allclose(pixel_of(camera, [0, 0, 3 * np.tan(0.25)])[1], 0.0, atol=1e-4)


def test_azimuth_is_counterclockwise_from_above_and_polar_from_the_top():
    camera = orbit_camera(azimuth=np.pi / 2, polar=np.pi / 3, radius=2.0, fov=0.5, size=8, target=(1, 2, 3))
    expected = np.array([1, 2, 3]) + 2 * np.array([0, np.sin(np.pi / 3), np.cos(np.pi / 3)])
    np.testing.assert_allclose(camera_center(camera), expected, atol=1e-6)
    np.testing.assert_allclose(pixel_of(camera, [1, 2, 3]), [4, 4, 2], atol=1e-5)


@pytest.mark.parametrize("polar", [0.0, np.pi, 1e-6, 0.7])
def test_poses_are_rigid_even_straight_above(polar):
    pose = np.asarray(orbit_camera(azimuth=0.8, polar=polar, radius=2.0, fov=0.5, size=8).world_to_camera)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-5)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])


def test_from_straight_above_x_points_up():
    camera = orbit_camera(azimuth=0.0, polar=0.0, radius=2.0, fov=0.5, size=8)
    column, row, _ = pixel_of(camera, [0.2, 0.0, 0.0])
    assert column == pytest.approx(4, abs=1e-4) and row < 3.5


def test_look_at_along_the_spare_axis_too():
    pose = look_at(jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]), jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)


def test_orbits_are_jittable_and_vmappable():
    azimuths, targets = jnp.arange(3.0), jnp.arange(9.0).reshape(3, 3) / 10
    build = jax.jit(
        jax.vmap(
            lambda a, t: orbit_camera(azimuth=a, polar=1.0, radius=2.0, fov=0.4 + a / 10, size=8, target=t)
        )
    )
    many = build(azimuths, targets)
    assert many.width == 8
    for row in range(3):
        one = orbit_camera(
            azimuth=float(azimuths[row]),
            polar=1.0,
            radius=2.0,
            fov=0.4 + row / 10,
            size=8,
            target=targets[row],
        )
        np.testing.assert_allclose(many.world_to_camera[row], one.world_to_camera, atol=1e-6)
        np.testing.assert_allclose(many.intrinsics[row], one.intrinsics, rtol=1e-5)


def test_polar_angles_are_those_that_cameras_were_placed_at():
    polar = jnp.array([0.2, 1.0, 1.9])
    cameras = jax.vmap(lambda angle: orbit_camera(azimuth=4.0, polar=angle, radius=2.0, fov=0.7, size=8))(
        polar
    )
    np.testing.assert_allclose(polar_angles(cameras), polar, rtol=1e-5)


def test_opengl_axes_are_right_up_and_backward():
    camera = orbit_camera(azimuth=0.7, polar=1.1, radius=2.0, fov=0.5, size=8, target=(0.3, 0.1, -0.2))
    matrix = np.asarray(opengl_camera_to_world(camera))
    right, up, backward, place = matrix[:3].T
    np.testing.assert_allclose(place, camera_center(camera), atol=1e-6)
    np.testing.assert_allclose(place - 2 * backward, [0.3, 0.1, -0.2], atol=1e-6)
    middle = place - backward
    assert pixel_of(camera, middle + 0.1 * right)[0] > 4.1 and pixel_of(camera, middle + 0.1 * up)[1] < 3.9
    np.testing.assert_array_equal(matrix[3], [0, 0, 0, 1])
