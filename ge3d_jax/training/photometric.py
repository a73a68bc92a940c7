"""One iteration of a fit: pictures → render → L1 and D-SSIM → gradient → Adam, as one compiled function."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from ge3d_jax.core.devices import replicated
from ge3d_jax.formats.posed_images import PosedImages
from ge3d_jax.metrics.pictures import psnr, ssim
from ge3d_jax.scenes.density_control import density_penalty
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.splatting.gaussians import MAX_SH_DEGREE, Gaussians
from ge3d_jax.splatting.rasterize import Rendered, render
from ge3d_jax.training.cameras import sample_backgrounds
from ge3d_jax.training.fit_config import FitConfig
from ge3d_jax.training.iterations import Step
from ge3d_jax.training.optimizer import Parameters, parameters_of
from ge3d_jax.training.state import TrainState
from ge3d_jax.training.update import update

# Degree of each coefficient of the spherical harmonics.
_BAND_DEGREES = np.repeat(np.arange(MAX_SH_DEGREE + 1), 2 * np.arange(MAX_SH_DEGREE + 1) + 1)
# Folded into the run's key for the order of the pictures; no iteration's number reaches it.
_ORDER_STREAM = 2**31 - 2


@struct.dataclass
class Views:
    """Pictures and cameras on the device.

    pixels: (V, H, W, 4) uint8, colour times alpha, and alpha.
    world_to_camera: (V, 4, 4), scene radii. intrinsics: (4,) pixels.
    """

    pixels: jax.Array
    world_to_camera: jax.Array
    intrinsics: jax.Array


@struct.dataclass
class FitMetrics:
    """Scalars of one iteration.

    loss: of the images, averaged over the views. psnr: their mean, decibels.
    splats: splats in use, int32. intersections: greatest number that a view's buffer had to hold, int32.
    overflow: by how many it was too small, int32; above 0 the iteration was not accepted.
    """

    loss: jax.Array
    psnr: jax.Array
    splats: jax.Array
    intersections: jax.Array
    overflow: jax.Array


def views_of(images: PosedImages, unit: float) -> Views:
    """Pictures to the device, their cameras with lengths in `unit` world units."""
    cameras = images.world_to_camera.copy()
    cameras[:, :3, 3] /= unit
    return Views(jnp.asarray(images.pixels), jnp.asarray(cameras), jnp.asarray(images.intrinsics))


def over_background(pixels: jax.Array, background: jax.Array) -> jax.Array:
    """Pictures (..., H, W, 4) uint8 over colours (..., 3): float32 (..., H, W, 3) in [0, 1]."""
    values = pixels.astype(jnp.float32) / 255.0
    return values[..., :3] + (1.0 - values[..., 3:]) * background[..., None, None, :]


def choose_views(key: jax.Array, iteration: jax.Array, *, views: int, count: int) -> jax.Array:
    """Indices (views,) of the pictures of an iteration: all `count` in a new order, again and again."""
    places = iteration * views + jnp.arange(views)

    def one(place: jax.Array) -> jax.Array:
        order = jax.random.permutation(jax.random.fold_in(key, place // count), count)
        return order[place % count]

    return jax.vmap(one)(places)


def with_degree(gaussians: Gaussians, degree: jax.Array | int) -> Gaussians:
    """The splats with the colour's bands above `degree` left out."""
    is_used = jnp.asarray(_BAND_DEGREES[: gaussians.sh.shape[1]]) <= degree
    return dataclasses.replace(gaussians, sh=jnp.where(is_used[:, None], gaussians.sh, 0.0))


def render_view(
    gaussians: Gaussians,
    world_to_camera: jax.Array,
    intrinsics: jax.Array,
    background: jax.Array,
    *,
    size: tuple[int, int],
    buffer_capacity: int,
    screen_offsets: jax.Array | None = None,
) -> Rendered:
    """One view of (width, height) pixels."""
    camera = Camera(world_to_camera, intrinsics, width=size[0], height=size[1])
    return render(
        gaussians,
        camera,
        background=background,
        buffer_capacity=buffer_capacity,
        screen_offsets=screen_offsets,
    )


def image_loss(image: jax.Array, target: jax.Array, *, dssim: float) -> jax.Array:
    """(1 − dssim)·L1 + dssim·(1 − SSIM) of images (H, W, 3), scalar."""
    return (1.0 - dssim) * jnp.mean(jnp.abs(image - target)) + dssim * (1.0 - ssim(image, target))


@struct.dataclass
class _Seen:
    """What a device finds out about its share of the views, all with a leading axis of them."""

    screen_gradients: jax.Array
    radii: jax.Array
    losses: jax.Array
    psnrs: jax.Array
    intersections: jax.Array
    overflow: jax.Array


def _gradients(
    gaussians: Gaussians,
    degree: jax.Array,
    intrinsics: jax.Array,
    world_to_camera: jax.Array,
    pixels: jax.Array,
    backgrounds: jax.Array,
    *,
    config: FitConfig,
    buffer_capacity: int,
    axis: str,
) -> tuple[Parameters, _Seen]:
    """Losses and gradients of this device's views, the gradients summed over all devices."""
    views, height, width = pixels.shape[:3]
    targets = over_background(pixels, backgrounds)

    def objective(parameters: Parameters, screen_offsets: jax.Array) -> tuple[jax.Array, tuple]:
        changed = dataclasses.replace(gaussians, **parameters)
        shown = with_degree(changed, degree)

        def one(matrix: jax.Array, background: jax.Array, offsets: jax.Array, target: jax.Array) -> tuple:
            rendered = render_view(
                shown,
                matrix,
                intrinsics,
                background,
                size=(width, height),
                buffer_capacity=buffer_capacity,
                screen_offsets=offsets,
            )
            loss = image_loss(rendered.rgb, target, dssim=config.loss.dssim)
            return loss, psnr(rendered.rgb, target), rendered

        losses, psnrs, rendered = jax.vmap(one)(world_to_camera, backgrounds, screen_offsets, targets)
        # A sum: what density control sees of a view does not depend on how many there are.
        loss = jnp.sum(losses) + views * density_penalty(changed, config=config.density)
        return loss, (losses, psnrs, rendered)

    screen_offsets = jnp.zeros((views, gaussians.capacity, 2))
    (gradients, screen_gradients), (losses, psnrs, rendered) = jax.grad(
        objective, argnums=(0, 1), has_aux=True
    )(parameters_of(gaussians), screen_offsets)
    seen = _Seen(
        screen_gradients=screen_gradients,
        radii=rendered.radii,
        losses=losses,
        psnrs=psnrs,
        intersections=rendered.intersections,
        overflow=rendered.overflow,
    )
    return jax.lax.psum(gradients, axis), seen


def fit_step(
    state: TrainState, views: Views, *, config: FitConfig, buffer_capacity: int, mesh: Mesh
) -> tuple[TrainState, FitMetrics]:
    """One iteration; pure. The mesh's devices, among which the views must divide, each render their share.

    Where a view's intersections overflow the buffer the state comes back as it was: the caller repeats the
    iteration with a larger buffer.
    """
    key = jax.random.fold_in(state.key, state.iteration)
    background_key, exploration_key = jax.random.split(key)
    order_key = jax.random.fold_in(state.key, _ORDER_STREAM)
    chosen = choose_views(order_key, state.iteration, views=config.views, count=views.pixels.shape[0])
    degree = jnp.minimum(state.iteration // config.sh_every, config.start.sh_degree)
    (axis,) = mesh.axis_names
    shared, own = PartitionSpec(), PartitionSpec(axis)
    gradients, seen = jax.shard_map(
        partial(_gradients, config=config, buffer_capacity=buffer_capacity, axis=axis),
        mesh=mesh,
        in_specs=(shared, shared, shared, own, own, own),
        out_specs=(shared, own),
        # Gradients of shared values stay each device's own until they are summed.
        check_vma=False,
    )(
        state.gaussians,
        degree,
        views.intrinsics,
        views.world_to_camera[chosen],
        views.pixels[chosen],
        sample_backgrounds(background_key, config.background, config.views),
    )
    overflow = jnp.max(seen.overflow)
    height, width = views.pixels.shape[1:3]
    stepped = update(
        state,
        gradients,
        seen.screen_gradients,
        seen.radii,
        exploration_key,
        is_accepted=overflow == 0,
        progress=state.iteration.astype(jnp.float32) / config.iterations,
        image_size=(width, height),
        optimizer=config.optimizer,
        density=config.density,
    )
    metrics = FitMetrics(
        loss=jnp.mean(seen.losses),
        psnr=jnp.mean(seen.psnrs),
        splats=jnp.sum(state.gaussians.mask),
        intersections=jnp.max(seen.intersections),
        overflow=overflow,
    )
    # The next iteration must find the state placed as this one did, or it would be compiled again.
    return jax.lax.with_sharding_constraint((stepped, metrics), replicated(mesh))


_compiled_step = jax.jit(
    fit_step, static_argnames=("config", "buffer_capacity", "mesh"), donate_argnames="state"
)


def make_fit_step(config: FitConfig, views: Views, buffer_capacity: int, mesh: Mesh) -> Step:
    """One iteration as one compiled function. It donates the state it is given: use the returned one only."""
    return partial(_compiled_step, views=views, config=config, buffer_capacity=buffer_capacity, mesh=mesh)
