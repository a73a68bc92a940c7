"""Ground-truth pictures of the Toybox world, by sphere tracing its signed distance functions.

Light is fixed to the world, comes from above and a little from the front, and shades without gloss: a
surface looks the same from everywhere, as splats of degree 0 do, and pictures stay linear in the paint. So
one tracing gives `Layers`, and any colours and background are put in afterwards at no cost.

| name | meaning | shape |
|---|---|---|
| points | where a ray stands, world units | (R, 3) |
| shade | light that a surface sends back, 0..1 | (R,) |
| primary, secondary | shade × share of the pixel in that paint | (H, W) |
| fixed | shade × colour × share, of what has its own colour | (H, W, 3) |
| alpha | share of the pixel that the object covers | (H, W) |
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.splatting.cameras import Camera, camera_center, orbit_camera
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.objects import COLORS, KINDS, PRIMARY, SECONDARY

IMAGE_SIZE = 64

# Cameras of the world, in world units and radians: close ones, so that an object fills the picture.
RADIUS_RANGE = (3.35, 3.65)
POLAR_RANGE = (1.0472, 1.3963)  # 60 to 80 degrees from +z: a little above the horizon
FIELD_OF_VIEW = 0.5

# Of a picture of IMAGE_SIZE; a larger one, whose pixels are smaller, has more and a smaller distance.
_TRACE_STEPS = 40
_HIT_DISTANCE = 4e-3  # a seventh of a pixel at the object
_REACH = 1.0  # objects lie within this distance of the origin
_SUPERSAMPLING = 2  # per axis
_LIGHT_DIRECTION = (0.33, 0.0, 0.944)  # unit, y = 0 for mirror symmetry
_AMBIENT, _DIFFUSE = 0.66, 0.34


@struct.dataclass
class Layers:
    """One traced view before the paint: see the module's table."""

    primary: jax.Array
    secondary: jax.Array
    fixed: jax.Array
    alpha: jax.Array


def toybox_camera(
    azimuth: jax.Array | float, polar: jax.Array | float, radius: jax.Array | float = 3.5
) -> Camera:
    """Camera of the world at `azimuth`, `polar` (radians) and `radius`, looking at the origin, 64×64 px."""
    return orbit_camera(azimuth=azimuth, polar=polar, radius=radius, fov=FIELD_OF_VIEW, size=IMAGE_SIZE)


def random_camera(key: jax.Array) -> Camera:
    """Camera drawn uniformly from those the bundled model was trained on."""
    azimuth_key, polar_key, radius_key = jax.random.split(key, 3)
    return toybox_camera(
        jax.random.uniform(azimuth_key, minval=-jnp.pi, maxval=jnp.pi),
        jax.random.uniform(polar_key, minval=POLAR_RANGE[0], maxval=POLAR_RANGE[1]),
        jax.random.uniform(radius_key, minval=RADIUS_RANGE[0], maxval=RADIUS_RANGE[1]),
    )


def _rays(camera: Camera) -> jax.Array:
    """World directions (H·s·W·s, 3) through the subpixel centres, s = supersampling."""
    count = _SUPERSAMPLING
    rows = (jnp.arange(camera.height * count) + 0.5) / count
    columns = (jnp.arange(camera.width * count) + 0.5) / count
    focal_x, focal_y, center_x, center_y = camera.intrinsics
    x, y = jnp.meshgrid((columns - center_x) / focal_x, (rows - center_y) / focal_y)
    local = jnp.stack([x, y, jnp.ones_like(x)], axis=-1).reshape(-1, 3)
    directions = local @ camera.world_to_camera[:3, :3]  # rows of the rotation are the camera's axes
    return directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)


@partial(jax.jit, static_argnums=0)
def trace(kind: str, camera: Camera) -> Layers:
    """Trace one view of `kind`; the result takes any paint (`paint_layers`)."""
    solids = KINDS[kind].solids
    # Rays that pass close by are long underway: with this many steps one in twenty on the outline of a
    # picture of 512 pixels ends too early.
    fineness = max(1.0, camera.height / IMAGE_SIZE)
    steps, hit_distance = math.ceil(_TRACE_STEPS * math.sqrt(fineness)), _HIT_DISTANCE / fineness

    def distances(points: jax.Array) -> jax.Array:
        return jnp.stack([value for _, value in solids(points)])

    def distance(points: jax.Array) -> jax.Array:
        return jnp.min(distances(points), axis=0)

    origin = camera_center(camera)
    directions = _rays(camera)
    # Rays start and end on the sphere that holds the object.
    middle = -directions @ origin
    half_chord = jnp.sqrt(jnp.maximum(middle**2 - origin @ origin + _REACH**2, 0.0))

    def march(_: int, travelled: jax.Array) -> jax.Array:
        return jnp.minimum(
            travelled + distance(origin + travelled[:, None] * directions), middle + half_chord
        )

    travelled = jax.lax.fori_loop(0, steps, march, middle - half_chord)
    points = origin + travelled[:, None] * directions
    hit = (distance(points) < hit_distance) & (half_chord > 0.0)

    nearest = jnp.argmin(distances(points), axis=0)
    # Not the gradient of the minimum: that asks which distance equals it, and where the compiler computes a
    # distance twice, rounded in two ways, none does.
    normals = jax.grad(lambda p: jnp.sum(jnp.take_along_axis(distances(p), nearest[None], axis=0)))(points)
    facing = jnp.maximum(normals @ jnp.asarray(_LIGHT_DIRECTION), 0.0)
    shade = jnp.where(
        hit, _AMBIENT + _DIFFUSE * facing / jnp.maximum(jnp.linalg.norm(normals, axis=-1), 1e-6), 0.0
    )

    paints = [paint for paint, _ in solids(points)]
    own_colors = jnp.asarray([(0.0, 0.0, 0.0) if isinstance(paint, str) else paint for paint in paints])

    def wears(slot: str) -> jax.Array:
        return jnp.asarray([paint == slot for paint in paints])[nearest] * shade

    def to_pixels(values: jax.Array) -> jax.Array:
        count = _SUPERSAMPLING
        grid = values.reshape(camera.height, count, camera.width, count, -1).mean(axis=(1, 3))
        return grid if values.ndim > 1 else grid[..., 0]

    return Layers(
        primary=to_pixels(wears(PRIMARY)),
        secondary=to_pixels(wears(SECONDARY)),
        fixed=to_pixels(own_colors[nearest] * shade[:, None]),
        alpha=to_pixels(hit.astype(shade.dtype)),
    )


def paint_layers(
    layers: Layers, primary: jax.Array, secondary: jax.Array, background: jax.Array
) -> jax.Array:
    """Put colours and a background `(..., 3)` into layers `(..., H, W)`: pictures `(..., H, W, 3)`."""

    def over_pixels(color: jax.Array) -> jax.Array:
        return jnp.asarray(color)[..., None, None, :]

    return (
        layers.primary[..., None] * over_pixels(primary)
        + layers.secondary[..., None] * over_pixels(secondary)
        + layers.fixed
        + (1.0 - layers.alpha[..., None]) * over_pixels(background)
    )


def sentence_colors(sentence: Sentence) -> tuple[jax.Array, jax.Array]:
    """Primary and secondary colour `(3,)` that a sentence asks for."""
    second = sentence.second_color or KINDS[sentence.kind].part_color
    return jnp.asarray(COLORS[sentence.color]), jnp.asarray(COLORS[second])


def render_sentence(sentence: Sentence, camera: Camera, *, background: jax.Array) -> jax.Array:
    """Ground-truth picture (H, W, 3) of a sentence over a colour (3,); its view phrase does not count."""
    return paint_layers(trace(sentence.kind, camera), *sentence_colors(sentence), background)
