"""Cameras, backgrounds and other random draws of an iteration."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.settings import with_overrides
from ge3d_jax.training import cameras as inputs
from ge3d_jax.training.config import BackgroundConfig
from ge3d_jax.training.distillation import Distillation, begin
from ge3d_jax.training.presets import PRESETS
from tests.guidance import golden

PAPER = PRESETS["paper"].cameras
STILL = dataclasses.replace(PAPER, jitter_center=0.0, jitter_target=0.0, jitter_up=0.0)

sample_cameras = jax.jit(inputs.sample_cameras, static_argnames=("config", "views", "size", "together"))


def _positions(cameras):
    pose = np.asarray(cameras.world_to_camera)
    return -np.einsum("...ji,...j->...i", pose[..., :3, :3], pose[..., :3, 3])


def test_ranges_widen_step_by_step_until_their_ends():
    radius, fov, azimuth = inputs.camera_ranges(PAPER, 99)
    np.testing.assert_allclose(radius, PAPER.radius_begin)
    np.testing.assert_allclose(fov, PAPER.fov_radians_begin)
    assert float(azimuth) == PAPER.azimuth_degrees_begin
    radius, fov, azimuth = inputs.camera_ranges(PAPER, 100)
    np.testing.assert_allclose(radius, [5.2 * 0.95, 5.5 * 0.95], rtol=1e-6)
    np.testing.assert_allclose(fov, [0.32 * 0.75, 0.60], rtol=1e-6)
    assert float(azimuth) == pytest.approx(120.0)
    radius, fov, azimuth = inputs.camera_ranges(PAPER, 3000)
    np.testing.assert_allclose(radius, PAPER.radius_end, rtol=1e-6)
    np.testing.assert_allclose(fov, PAPER.fov_radians_end, rtol=1e-6)
    assert float(azimuth) == 180.0


def test_cameras_stand_where_the_settings_say():
    cameras, azimuth = sample_cameras(jax.random.key(0), STILL, 0, views=400, size=32)
    x, y, z = _positions(cameras).T
    radius = np.sqrt(x**2 + y**2 + z**2)
    assert radius.min() >= 5.2 - 1e-4 and radius.max() <= 5.5 + 1e-4 and np.ptp(radius) > 0.25
    polar = np.rad2deg(np.arccos(z / radius))
    assert polar.min() >= 45 - 1e-3 and polar.max() <= 90 + 1e-3 and np.ptp(polar) > 40
    np.testing.assert_allclose(np.arctan2(y, x), azimuth, atol=1e-4)
    degrees = np.rad2deg(azimuth)
    assert np.abs(degrees).max() <= 80.001 and degrees.min() < -60 and degrees.max() > 60
    # With u^1.5, half of the cameras lie within 0.5^1.5 of the half-range.
    assert np.mean(np.abs(degrees) < 80 * 0.5**1.5) == pytest.approx(0.5, abs=0.08)
    # All cameras share one field of view.
    assert np.ptp(np.asarray(cameras.intrinsics[:, 0])) == 0.0


def _farthest(values, quantiles):
    """Kolmogorov distance of a sample from a distribution given by its 0 … 100 % quantiles."""
    shares = np.mean(np.ravel(values)[:, None] <= quantiles, axis=0)
    return np.abs(shares - np.linspace(0, 1, len(quantiles)))[1:-1].max()


@jax.jit
def _batches(seed, iteration):
    """500 batches of ten cameras, each with one field of view, without jitter and with center jitter."""
    draw = partial(inputs.sample_cameras, iteration=iteration, views=10, size=512)
    jittered = dataclasses.replace(STILL, jitter_center=PAPER.jitter_center)
    keys = jax.random.split(jax.random.key(seed), 500)
    return jax.vmap(lambda key: (draw(key, STILL), draw(key, jittered)))(keys)


@pytest.mark.parametrize("iteration", [1, 200, 1500])
def test_cameras_are_spread_as_the_authors_are(iteration):
    # The camera centers without the jitter.
    (cameras, azimuth), (moved, _) = _batches(iteration, iteration)
    centers, jitter = (_positions(each).reshape(-1, 3) for each in (cameras, moved))
    radius = np.linalg.norm(centers, axis=1)
    quantiles = golden.load_tables("cameras")[f"ge3d/k{iteration}/quantiles"]
    # In file order.
    found = {
        0: np.rad2deg(azimuth),
        1: np.rad2deg(np.arccos(centers[:, 2] / radius)),
        2: radius,
        **{3 + axis: (jitter - centers)[:, axis] for axis in range(3)},
    }
    for row, values in found.items():
        assert _farthest(values, quantiles[row]) < 0.04, row
    fov = 2 * np.arctan(256 / np.asarray(cameras.intrinsics[:, 0, 0]))
    assert _farthest(fov, quantiles[12]) < 0.12


def test_views_that_belong_together_stand_around_the_object():
    still = PRESETS["toybox"].cameras
    cameras, azimuth = sample_cameras(jax.random.key(2), still, 0, views=8, size=32, together=4)
    degrees = np.rad2deg(np.asarray(azimuth)).reshape(2, 4)
    np.testing.assert_allclose(degrees - degrees[:, :1], [[0, 90, 180, 270]] * 2, atol=1e-3)
    x, y, z = _positions(cameras).reshape(2, 4, 3).transpose(2, 0, 1)
    np.testing.assert_allclose(np.arctan2(y, x), np.angle(np.exp(1j * np.deg2rad(degrees))), atol=1e-4)
    for values in (z, np.hypot(x, y)):
        assert np.ptp(values, axis=1).max() < 1e-5 and abs(values[0, 0] - values[1, 0]) > 1e-4


def test_jitter_moves_the_cameras_a_little():
    cameras, azimuth = sample_cameras(jax.random.key(1), PAPER, 0, views=50, size=32)
    x, y, _ = _positions(cameras).T
    away = np.abs(np.arctan2(y, x) - azimuth)
    assert 0 < away.max() < 0.05


def test_jitter_of_the_target_and_of_the_up_vector():
    still, azimuth = sample_cameras(jax.random.key(1), STILL, 0, views=400, size=32)

    def turned(**jitter):
        """Where the origin lies in the view, and how far "up" leans to the side."""
        cameras, _ = sample_cameras(
            jax.random.key(1), dataclasses.replace(STILL, **jitter), 0, views=400, size=32
        )
        np.testing.assert_allclose(_positions(cameras), _positions(still), atol=1e-4)
        pose = np.asarray(cameras.world_to_camera)
        return pose[:, :2, 3], pose[:, 0, 2]

    aside, leaning = turned(jitter_target=0.2)
    # The target moves by up to a standard normal times the jitter, seen across the line of sight.
    np.testing.assert_allclose(aside.std(axis=0), 0.2, rtol=0.15)
    aside, leaning = turned(jitter_up=0.02)
    assert np.abs(aside).max() < 1e-4
    # The view leans as far to the side as its up vector does.
    assert leaning.std() == pytest.approx(0.02, rel=0.15)


def test_backgrounds_keep_their_shares():
    config = BackgroundConfig(color=(1.0, 1.0, 1.0), replaced=0.6, random_share=0.5)
    colors = np.asarray(inputs.sample_backgrounds(jax.random.key(0), config, 4000))
    white, black = np.all(colors == 1, axis=1).mean(), np.all(colors == 0, axis=1).mean()
    assert white == pytest.approx(0.4, abs=0.03) and black == pytest.approx(0.3, abs=0.03)
    seldom = dataclasses.replace(config, random_share=0.25)
    colors = np.asarray(inputs.sample_backgrounds(jax.random.key(0), seldom, 4000))
    assert np.all(colors == 0, axis=1).mean() == pytest.approx(0.45, abs=0.03)


def test_random_backgrounds_are_any_color():
    config = BackgroundConfig(color=(1.0, 1.0, 1.0), replaced=0.7, random_share=0.5)
    colors = np.asarray(inputs.sample_backgrounds(jax.random.key(0), config, 8000))
    random = colors[~np.all(colors == 1, axis=1) & ~np.all(colors == 0, axis=1)]
    # Each channel is uniform, and tells nothing about the others.
    for channel in random.T:
        assert _farthest(channel, np.linspace(0, 1, 21)) < 0.04
    np.testing.assert_allclose(np.corrcoef(random.T), np.eye(3), atol=0.08)


def test_draws_keep_views_together_that_the_loss_groups(tiny_config, tiny_model, prompted):
    settings = {"guidance.kind": "mvdream", "views": 8, "flip_probability": 0.0}
    task = Distillation(with_overrides(tiny_config, settings))
    drawn = task.draw(begin(task.config, tiny_model, jax.random.key(0)), prompted)
    degrees = np.rad2deg(np.asarray(drawn.per_view["azimuth"])).reshape(2, 4)
    np.testing.assert_allclose((degrees - degrees[:, :1] + 1) % 360 - 1, [[0, 90, 180, 270]] * 2, atol=1e-3)


def test_draws_mirror_as_often_as_they_should(tiny_config, tiny_model, prompted):
    task = Distillation(with_overrides(tiny_config, {"flip_probability": 0.25}))
    state = begin(task.config, tiny_model, jax.random.key(0))
    flips = jax.jit(
        jax.vmap(lambda k: task.draw(state.replace(iteration=k), prompted).shared["flip"], in_axes=0)
    )(jnp.arange(400))
    assert np.mean(flips) == pytest.approx(0.25, abs=0.08)


def test_everything_has_its_shape_and_another_key_changes_it_all(tiny_config, tiny_model, prompted):
    task = Distillation(with_overrides(tiny_config, {"views": 3}))

    @jax.jit
    def draw(seed):
        drawn = task.draw(begin(task.config, tiny_model, jax.random.key(seed)), prompted)
        return drawn.per_view | drawn.per_view["loss"] | drawn.per_view["scene"] | drawn.shared["loss"]

    first, again, other = draw(0), draw(0), draw(1)
    assert first["noise"].shape == (3, 8, 8, 4) and first["scale_noise"].shape == (3, 48, 3)
    assert first["backgrounds"].shape == (3, 3) and first["node_times"].shape == (4,)
    assert first["posterior_noise"].shape == (3, 8, 8, 4)
    assert float(jnp.std(first["scale_noise"])) == pytest.approx(0.1, rel=0.2)
    for name in ("azimuth", "noise", "scale_noise", "node_times", "posterior_noise"):
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_the_encoder_s_noise_is_not_the_loss_s(tiny_config, tiny_model, prompted):
    task = Distillation(with_overrides(tiny_config, {"guidance.kind": "sds", "picture_weight": 0.0}))

    @jax.jit
    def draw():
        drawn = task.draw(begin(task.config, tiny_model, jax.random.key(0)), prompted).per_view
        return drawn["posterior_noise"], drawn["loss"]["noise"]

    encoder, loss = map(np.ravel, draw())
    assert encoder.size == loss.size == 2 * 8 * 8 * 4
    assert abs(np.corrcoef(encoder, loss)[0, 1]) < 0.2
