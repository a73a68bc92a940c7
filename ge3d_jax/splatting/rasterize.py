"""Rendering: splats and a camera to an image, in JAX, differentiable, jittable and vmappable.

project (autodiff) → bin_splats (no gradient) → composite (its own gradient) → image over the background.

`render` is the pure function, with a buffer of a length that the caller sets; `render_image` is for callers
outside of `jit` and finds the length itself.
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
from ge3d_jax.splatting.compositing import Splats2D, composite
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.projection import MIN_ALPHA, NEAR_PLANE, project
from ge3d_jax.splatting.tiles import TILE_SIZE, bin_splats, tile_grid

# Divisor of the depth where nothing is hit; a pixel that is hit at all has at least MIN_ALPHA.
SMALLEST_ALPHA = 0.5 * MIN_ALPHA
# Where `render_image` begins, entries; below this a shorter buffer saves nothing.
FIRST_CAPACITY = 2**14
# Entries are numbered in 32 bits, and so are the sums over them; this leaves a margin.
LARGEST_CAPACITY = 2**30
# What an entry takes in a forward pass, bytes; with gradients it takes up to 120.
_ENTRY_BYTES = 72
# Of a device's memory, for the buffer: the rest is for the splats, the image and other programs.
_LARGEST_SHARE = 0.5


_Drawn = TypeVar("_Drawn")


@struct.dataclass
class Rendered:
    """One rendered view.

    rgb: (H, W, 3) colours over the background; not clipped from above.
    alpha: (H, W) share of the background that is hidden, in [0, 1].
    depth: (H, W) mean camera-space z of what is seen, Σ w·z / Σ w, world units; 0 where alpha is 0.
    intersections: () int32, a length of the intersection buffer that this view fits in: exact, but for a
        buffer so short that not even the splats' rows of tiles fit, where it is an upper bound.
    overflow: () int32, by how much the buffer was too short; where it is not 0 the image lacks splats:
        render again with a larger one.
    radii: (N,) extent of each splat along its longer axis, pixels; 0 where it is masked, behind the camera,
        too faint, or beside the image.
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
    scale_multiplier: jax.Array | None = None,
    near: float = NEAR_PLANE,
    far: float = math.inf,
    antialiased: bool = False,
) -> Rendered:
    """Render the splats from one camera.

    Differentiable in the splats, every entry of the camera's matrix and intrinsics, the background, the
    offsets and the factors; may be vmapped over any of these. The same arguments give the same bits.

    background: (3,) RGB in [0, 1].
    buffer_capacity: length of the (tile, splat) list of one view, static.
    screen_offsets: (N, 2) pixels added to the projected centres, None for zeros; its gradient is the
        screen-space gradient that density control accumulates.
    scale_multiplier: (N,) or (N, 3) factor on the scales, None for 1.
    near, far: a splat is drawn where its centre's camera-space z lies between these, world units.
    antialiased: weaken splats thinner than a pixel as Mip-Splatting does (Yu et al. 2024), rather than let
        the widening to a pixel make them too strong. Static.
    """
    if buffer_capacity < 1:
        raise UserError(f"buffer_capacity is {buffer_capacity}, but the list needs room: make it 1 or more")
    count = gaussians.capacity
    chex.assert_shape(gaussians.positions, (count, 3))
    chex.assert_shape(gaussians.quaternions, (count, 4))
    chex.assert_shape(camera.world_to_camera, (4, 4))
    chex.assert_shape(background, (3,))

    projected = project(gaussians, camera, scale_multiplier, near=near, far=far, antialiased=antialiased)
    if screen_offsets is not None:
        chex.assert_shape(screen_offsets, (count, 2))
        projected = dataclasses.replace(projected, means=projected.means + screen_offsets)
    width, height = camera.width, camera.height
    lists = bin_splats(projected, width=width, height=height, buffer_capacity=buffer_capacity)
    features = jnp.concatenate([projected.colors, projected.depths[:, None]], axis=-1)
    splats = Splats2D(projected.means, projected.whitening, projected.opacities, features)
    columns, rows = tile_grid(width, height)
    sums, light = composite(columns, rows, splats, lists)

    def image(values: jax.Array) -> jax.Array:
        """(tiles, channels, pixels) to (H, W, channels); tiles may stick out of the image."""
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
    """The longest buffer that the device has memory for when it renders, entries."""
    memory = memory_limit(jax.devices()[0])
    if memory is None:
        return LARGEST_CAPACITY
    return min(LARGEST_CAPACITY, int(_LARGEST_SHARE * memory) // _ENTRY_BYTES)


def check_capacity(needed: int, width: int, height: int) -> None:
    """Refuse a view that needs a longer buffer than there is memory for. Raises UserError."""
    largest = largest_capacity()
    if needed > largest:
        raise UserError(
            f"The splats cover up to {needed} tiles of the {width}×{height} image, but there is memory for "
            f"{largest}: render a smaller image (--size), or see whether the scales in the splat file are "
            "logarithms, as they must be."
        )


def grow_to_fit(
    draw: Callable[[int], tuple[_Drawn, jax.Array]], capacity: int, *, width: int, height: int
) -> tuple[_Drawn, int]:
    """What `draw` makes with the first buffer that every splat fits in, and the length of that buffer.

    draw: buffer_capacity → (what it makes, the intersections that its fullest view of width × height has).
    capacity: where the buffer starts; from there on it is a power of two.
    Raises UserError where the splats cover more tiles than there is memory for.
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
    """Render one view outside of `jit`, with a buffer that grows until every splat fits; see `render`.

    Raises UserError where the splats cover more tiles than there is memory for.
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
