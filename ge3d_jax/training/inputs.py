"""What chance decides in one iteration: cameras, backgrounds, time nodes, noise, augmentation.

Drawn apart from the step itself, so that an iteration can be repeated with all of it held fixed.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.guidance.ge3d import offset_noise
from ge3d_jax.guidance.trajectory import sample_time_nodes
from ge3d_jax.splatting.cameras import Camera, camera_center, look_at, orbit_camera
from ge3d_jax.training.config import BackgroundConfig, CameraConfig, Config

_UP = (0.0, 0.0, 1.0)
# Folded into the iteration's key, so that runs without this noise draw what they drew before there was any.
_EXPLORATION_STREAM = 2**31 - 1


@struct.dataclass
class StepInputs:
    """Everything random of one iteration with B views.

    Attributes:
        cameras: batch of B.
        azimuth: (B,) radians, before jitter.
        backgrounds: (B, 3).
        node_times: (n + 1,) int32. active: scalar int32.
        noise: (B, h, w, C) for the noising trajectory.
        flip: scalar bool, mirror the whole batch.
        scale_noise: (B, N, 3), added to 1 and multiplied onto the splats' scales.
        posterior_key: for the sample of the latent.
        exploration_key: for the noise on the positions.
    """

    cameras: Camera
    azimuth: jax.Array
    backgrounds: jax.Array
    node_times: jax.Array
    active: jax.Array
    noise: jax.Array
    flip: jax.Array
    scale_noise: jax.Array
    posterior_key: jax.Array
    exploration_key: jax.Array


def _widened(begin: float, end: float, factor: float, times: jax.Array) -> jax.Array:
    """`begin` multiplied `times` times by `factor`, but never past `end`."""
    return jnp.clip(begin * factor ** times.astype(jnp.float32), min(begin, end), max(begin, end))


def camera_ranges(config: CameraConfig, iteration: jax.Array | int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The ranges at an iteration: radius (2,) world units, fov (2,) radians, greatest azimuth (degrees)."""
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


def sample_cameras(
    key: jax.Array, config: CameraConfig, iteration: jax.Array | int, *, views: int, size: int
) -> tuple[Camera, jax.Array]:
    """Cameras on the sphere, looking at the origin but for the jitters; one field of view for all.

    Returns:
        a batch of `views` cameras, and their azimuths (views,) in radians.
    """
    radius_range, fov_range, widest = camera_ranges(config, iteration)
    keys = jax.random.split(key, 9)

    def around_middle(sign_key: jax.Array, size_key: jax.Array) -> jax.Array:
        distance = jax.random.uniform(size_key, (views,)) ** config.concentration
        return distance * jax.random.rademacher(sign_key, (views,), distance.dtype)

    low, high = config.polar_degrees
    azimuth = jnp.deg2rad(widest * around_middle(keys[0], keys[1]))
    polar = jnp.deg2rad((low + high) / 2 + (high - low) / 2 * around_middle(keys[2], keys[3]))
    radius = jax.random.uniform(keys[4], (views,), minval=radius_range[0], maxval=radius_range[1])
    fov = jax.random.uniform(keys[5], (), minval=fov_range[0], maxval=fov_range[1])
    shift = jax.random.uniform(keys[6], (views, 3), minval=-1.0, maxval=1.0) * config.jitter_center
    target = jax.random.normal(keys[7], (views, 3)) * config.jitter_target
    up = jnp.asarray(_UP) + jax.random.normal(keys[8], (views, 3)) * config.jitter_up

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
    """One colour a view, (views, 3): the usual one, or replaced by a random one or black."""
    replace_key, choice_key, color_key = jax.random.split(key, 3)
    is_replaced = jax.random.bernoulli(replace_key, config.replaced, (views, 1))
    is_random = jax.random.bernoulli(choice_key, config.random_share, (views, 1))
    other = jnp.where(is_random, jax.random.uniform(color_key, (views, 3)), 0.0)
    return jnp.where(is_replaced, other, jnp.asarray(config.color))


def sample_inputs(
    key: jax.Array,
    config: Config,
    iteration: jax.Array | int,
    *,
    latent_shape: tuple[int, int, int],
    capacity: int,
) -> StepInputs:
    """Draw everything for one iteration.

    Args:
        latent_shape: (h, w, C) of one latent.
        capacity: N, length of the splats' buffer.
    """
    keys = jax.random.split(key, 7)
    cameras, azimuth = sample_cameras(
        keys[0], config.cameras, iteration, views=config.views, size=config.image_size
    )
    node_times, active = sample_time_nodes(
        keys[1],
        jnp.asarray(iteration, jnp.float32) / config.iterations,
        count=config.nodes.count,
        jump_max=config.nodes.jump_max,
        jump_min=config.nodes.jump_min,
        max_step=config.nodes.max_step,
    )
    scale_noise = config.augmentation.scale_noise * jax.random.normal(keys[2], (config.views, capacity, 3))
    return StepInputs(
        cameras=cameras,
        azimuth=azimuth,
        backgrounds=sample_backgrounds(keys[3], config.background, config.views),
        node_times=node_times,
        active=active,
        noise=offset_noise(keys[4], (config.views, *latent_shape), config.guidance.offset_noise),
        flip=jax.random.bernoulli(keys[5], config.augmentation.flip_probability),
        scale_noise=scale_noise,
        posterior_key=keys[6],
        exploration_key=jax.random.fold_in(key, _EXPLORATION_STREAM),
    )
