"""Differentiable rendering of splats in JAX, compatible with `jit` and `vmap`.

project (autodiff) → bin_splats (no gradient) → composite (custom gradient) → image over the background.

`render` is a pure function with a buffer length set by the caller; `render_image` is for use outside of `jit`
and determines the length itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeVar

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.core.devices import memory_limit
from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.splatting.compositing import composite
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.lists import Splats2D, Technique
from ge3d_jax.splatting.projection import DILATION, MIN_ALPHA, NEAR_PLANE, project
from ge3d_jax.splatting.techniques import AUTO, technique_of
from ge3d_jax.splatting.tiles import TILE_SIZE, bin_splats, tile_grid

# Divisor of the depth at pixels without splats; a pixel with any splat has an alpha of at least MIN_ALPHA.
SMALLEST_ALPHA = 0.5 * MIN_ALPHA
# Buffer length that `render_image` starts with, entries; a shorter one would save nothing.
FIRST_CAPACITY = 2**14
# Entries and sums over them are counted in 32 bits; this leaves a margin.
LARGEST_CAPACITY = 2**30
# Memory per entry in a forward pass, bytes; with gradients it is up to 120.
_ENTRY_BYTES = 72
# Largest share of a device's memory for the buffer; the rest is for the splats, the image and other programs.
_LARGEST_SHARE = 0.5


_Drawn = TypeVar("_Drawn")


@struct.dataclass
class Rendered:
    """One rendered view.

    Attributes:
        rgb: (H, W, 3) colors over the background; not clipped from above.
        alpha: (H, W) fraction of the background that is hidden, in [0, 1].
        depth: (H, W) weighted mean of camera-space z, Σ w·z / Σ w, world units; 0 where alpha is 0.
        intersections: () int32, the buffer length that this view needs. Exact unless the buffer is too short
            even for the splats' rows of tiles; then it is an upper bound.
        overflow: () int32, by how much the buffer was too short; unless it is 0, splats are missing and the
            view should be rendered again with a longer buffer.
        radii: (N,) extent of each splat along its longer axis, pixels; 0 if it is masked, behind the camera,
            too faint, or outside the image.
    """

    rgb: jax.Array
    alpha: jax.Array
    depth: jax.Array
    intersections: jax.Array
    overflow: jax.Array
    radii: jax.Array


def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: jax.Array,
    buffer_capacity: int,
    screen_offsets: jax.Array | None = None,
    color_offsets: jax.Array | None = None,
    scale_multiplier: jax.Array | None = None,
    near: float = NEAR_PLANE,
    far: float = math.inf,
    antialiased: bool = False,
    dilation: float = DILATION,
    rasterizer: str | Technique = AUTO,
) -> Rendered:
    """Render the splats from one camera.

    Differentiable with respect to the splats, every entry of the camera's matrix and intrinsics, the
    background, the offsets, and the scale factors; can be vmapped over any of these. Results are bitwise
    reproducible.

    Args:
        gaussians: N entries, used or not.
        camera: a single camera; its width W and height H are those of the image.
        background: (3,) RGB in [0, 1].
        buffer_capacity: length of the (tile, splat) list of one view, static.
        screen_offsets: (N, 2) pixels added to the projected centers, None for zeros; their gradient is the
            screen-space gradient that density control accumulates.
        color_offsets: (N, 3) added to the splats' colors as this camera sees them, None for zeros. Their
            gradient is the image's, weighted by how much of each pixel is the splat's: zero for splats that
            are not visible, and not cut off for black ones.
        scale_multiplier: (N,) or (N, 3) factor on the scales, None for 1.
        near: splats whose center's camera-space z is at most this, world units, are not drawn.
        far: splats whose center's camera-space z is at least this, world units, are not drawn.
        antialiased: reduce the opacity of splats thinner than a pixel, as in Mip-Splatting (Yu et al. 2024);
            widening them to a pixel would otherwise make them too strong. Static.
        dilation: how much splats are widened on the screen, a variance in px².
        rasterizer: one of `techniques.RASTERIZERS`, or a technique; they differ in speed and rounding.

    Returns:
        The image and further information about the view.

    Raises:
        UserError: `buffer_capacity` is less than 1, or there is no such rasterizer.
    """
    if buffer_capacity < 1:
        raise UserError(f"buffer_capacity is {buffer_capacity}, but must be at least 1; raise it.")
    count = gaussians.capacity
    chex.assert_shape(gaussians.positions, (count, 3))
    chex.assert_shape(gaussians.quaternions, (count, 4))
    chex.assert_shape(camera.world_to_camera, (4, 4))
    chex.assert_shape(background, (3,))

    projected = project(
        gaussians,
        camera,
        scale_multiplier,
        near=near,
        far=far,
        antialiased=antialiased,
        dilation=dilation,
    )
    if screen_offsets is not None:
        chex.assert_shape(screen_offsets, (count, 2))
        projected = dataclasses.replace(projected, means=projected.means + screen_offsets)
    width, height = camera.width, camera.height
    lists = bin_splats(projected, width=width, height=height, buffer_capacity=buffer_capacity)
    if color_offsets is not None:
        chex.assert_shape(color_offsets, (count, 3))
        projected = dataclasses.replace(projected, colors=projected.colors + color_offsets)
    features = jnp.concatenate([projected.colors, projected.depths[:, None]], axis=-1)
    splats = Splats2D(projected.means, projected.whitening, projected.opacities, features)
    columns, rows = tile_grid(width, height)
    technique = technique_of(rasterizer) if isinstance(rasterizer, str) else rasterizer
    sums, light = composite(columns, rows, splats, lists, technique)

    def image(values: jax.Array) -> jax.Array:
        """Reorder (tiles, channels, pixels) to (H, W, channels); tiles may extend beyond the image."""
        values = values.reshape(rows, columns, -1, TILE_SIZE, TILE_SIZE).transpose(0, 3, 1, 4, 2)
        return values.reshape(rows * TILE_SIZE, columns * TILE_SIZE, -1)[:height, :width]

    sums, light = image(sums), image(light[:, None])
    alpha = sums[..., 4]
    return Rendered(
        rgb=sums[..., :3] + light * background,
        alpha=alpha,
        depth=sums[..., 3] / jnp.maximum(alpha, SMALLEST_ALPHA),
        intersections=lists.intersections,
        overflow=lists.overflow,
        radii=jax.lax.stop_gradient(jnp.where(lists.touched, projected.radii, 0.0)),
    )


def largest_capacity() -> int:
    """Return the length of the longest buffer that fits in the device's memory while rendering, entries."""
    memory = memory_limit(jax.local_devices()[0])
    if memory is None:
        return LARGEST_CAPACITY
    return min(LARGEST_CAPACITY, int(_LARGEST_SHARE * memory) // _ENTRY_BYTES)


def check_capacity(needed: int, width: int, height: int) -> None:
    """Check that the buffer required by a view fits in memory.

    Args:
        needed: length of the buffer, entries.
        width: width of the image in pixels, for the message.
        height: height of the image in pixels, for the message.

    Raises:
        UserError: there is not enough memory.
    """
    largest = largest_capacity()
    if needed > largest:
        raise UserError(
            f"The splats cover up to {needed} tiles of the {width}×{height} image, but there is only memory "
            f"for {largest}; render a smaller image, or check that the scales in the splat file are "
            "logarithms, as they must be."
        )


def grow_to_fit(
    draw: Callable[[int], tuple[_Drawn, jax.Array]], capacity: int, *, width: int, height: int
) -> tuple[_Drawn, int]:
    """Call `draw` with growing buffers until every splat fits.

    Args:
        draw: maps a buffer_capacity to a result and the buffer length that the fullest view needs.
        capacity: length of the first buffer; later ones are powers of two.
        width: width of the images in pixels, for the message.
        height: height of the images in pixels, for the message.

    Returns:
        The result of `draw`, and the buffer length that was sufficient.

    Raises:
        UserError: the splats cover more tiles than fit in memory.
    """
    while True:
        drawn, intersections = draw(capacity)
        needed = int(intersections)
        if needed <= capacity:
            return drawn, capacity
        check_capacity(needed, width, height)
        capacity = min(2 ** (needed - 1).bit_length(), largest_capacity())


_draw = functools.partial(jax.jit, static_argnames=("buffer_capacity", "antialiased"))(render)


def render_image(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: jax.Array,
    near: float = NEAR_PLANE,
    far: float = math.inf,
    antialiased: bool = False,
) -> Rendered:
    """Render one view outside of `jit`, with a buffer that grows until every splat fits.

    Args:
        gaussians: N entries, used or not.
        camera: a single camera.
        background: (3,) RGB in [0, 1].
        near: see `render`.
        far: see `render`.
        antialiased: see `render`.

    Returns:
        The image and further information about the view.

    Raises:
        UserError: the splats cover more tiles than fit in memory.
    """

    def draw(capacity: int) -> tuple[Rendered, jax.Array]:
        rendered = _draw(
            gaussians,
            camera,
            background=background,
            buffer_capacity=capacity,
            near=near,
            far=far,
            antialiased=antialiased,
        )
        return rendered, rendered.intersections

    return grow_to_fit(draw, FIRST_CAPACITY, width=camera.width, height=camera.height)[0]
