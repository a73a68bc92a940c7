"""The cameras and backgrounds of an iteration."""

import dataclasses

import jax
import jax.numpy as jnp

from ge3d_jax.core.random import normal
from ge3d_jax.splatting.cameras import Camera, camera_center, look_at, orbit_camera
from ge3d_jax.training.config import BackgroundConfig, CameraConfig, Range

_UP = (0.0, 0.0, 1.0)


def _widened(begin: float, end: float, factor: float, times: jax.Array) -> jax.Array:
    """Multiply `begin` by `factor`, `times` times, but never past `end`."""
    return jnp.clip(begin * factor ** times.astype(jnp.float32), min(begin, end), max(begin, end))


def camera_ranges(config: CameraConfig, iteration: jax.Array | int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return an iteration's ranges: radius (2,) world units, fov (2,) radians, largest azimuth (degrees)."""
    past = jnp.asarray(iteration) - config.widen_from
    times = jnp.where(past >= 0, past // config.widen_every + 1, 0)
    radius = [
        _widened(begin, end, config.widen_radius, times)
        for begin, end in zip(config.radius_begin, config.radius_end, strict=True)
    ]
    fov = [
        _widened(begin, end, factor, times)
        for begin, end, factor in zip(
            config.fov_radians_begin, config.fov_radians_end, config.widen_fov, strict=True
        )
    ]
    azimuth = _widened(config.azimuth_degrees_begin, config.azimuth_degrees_end, config.widen_azimuth, times)
    return jnp.stack(radius), jnp.stack(fov), azimuth


def in_groups(values: jax.Array, together: int) -> jax.Array:
    """Set the values (B,) of each group of `together` entries to the first entry's value."""
    return jnp.repeat(values[::together], together)


def sample_cameras(
    key: jax.Array,
    config: CameraConfig,
    iteration: jax.Array | int,
    *,
    views: int,
    size: int,
    together: int = 1,
) -> tuple[Camera, jax.Array]:
    """Sample cameras on the sphere, aimed at the origin up to jitter, with a common field of view.

    Args:
        key: PRNG key.
        config: the ranges.
        iteration: k, which determines the ranges.
        views: number of cameras.
        size: edge of the square images, pixels.
        together: size of the groups of views spaced evenly around the object at one elevation and distance
            (4 for MVDream).

    Returns:
        a batch of `views` cameras, and their azimuths (views,) in radians.
    """
    radius_range, fov_range, widest = camera_ranges(config, iteration)
    even_key, normal_key = jax.random.split(key)
    # Only two draws, because each adds to the compile time.
    even = jax.random.uniform(even_key, (7 * views,), minval=-1.0, maxval=1.0).reshape(7, views)
    target, up = normal(normal_key, (2, views, 3))

    def around_middle(even: jax.Array) -> jax.Array:
        return jnp.sign(even) * jnp.abs(even) ** config.concentration

    def within(bounds: jax.Array | Range, even: jax.Array) -> jax.Array:
        return (bounds[0] + bounds[1]) / 2 + (bounds[1] - bounds[0]) / 2 * even

    azimuth = jnp.deg2rad(widest * around_middle(even[0]))
    polar = jnp.deg2rad(within(config.polar_degrees, around_middle(even[1])))
    radius = within(radius_range, even[2])
    fov = within(fov_range, even[3, 0])
    if together > 1:
        turn = jnp.arange(views) % together * (2.0 * jnp.pi / together)
        azimuth = in_groups(azimuth, together) + turn
        polar, radius = in_groups(polar, together), in_groups(radius, together)
    shift = even[4:].T * config.jitter_center
    target = target * config.jitter_target
    up = jnp.asarray(_UP) + up * config.jitter_up

    def one(
        azimuth: jax.Array,
        polar: jax.Array,
        radius: jax.Array,
        shift: jax.Array,
        target: jax.Array,
        up: jax.Array,
    ) -> Camera:
        camera = orbit_camera(azimuth=azimuth, polar=polar, radius=radius, fov=fov, size=size)
        return dataclasses.replace(camera, world_to_camera=look_at(camera_center(camera) + shift, target, up))

    return jax.vmap(one)(azimuth, polar, radius, shift, target, up), azimuth


def sample_backgrounds(key: jax.Array, config: BackgroundConfig, views: int) -> jax.Array:
    """Sample one color per view, (views, 3): the configured one, or a random one or black in its place."""
    chances = jax.random.uniform(key, (5 * views,)).reshape(views, 5)
    is_replaced, is_random = chances[:, :1] < config.replaced, chances[:, 1:2] < config.random_share
    other = jnp.where(is_random, chances[:, 2:], 0.0)
    return jnp.where(is_replaced, other, jnp.asarray(config.color))
