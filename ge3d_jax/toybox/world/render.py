"""Ground-truth pictures of the Toybox world, by sphere tracing its signed distance functions.

The light is fixed in the world, comes from above and slightly from the front, and the shading is diffuse: a
surface looks the same from every direction, as splats of degree 0 do, and pictures are linear in the paint.
Hence one tracing gives `Layers`, to which any colors and background can be added at no cost.

| name | meaning | shape |
|---|---|---|
| points | current point of a ray, world units | (R, 3) |
| shade | light that a surface reflects, 0 to 1 | (R,) |
| primary, secondary | shade × fraction of the pixel with that paint | (H, W) |
| fixed | shade × color × fraction, of solids with a fixed color | (H, W, 3) |
| alpha | fraction of the pixel that the object covers | (H, W) |
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.splatting.cameras import Camera, camera_center, orbit_camera
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.objects import COLORS, KINDS, PRIMARY, SECONDARY

IMAGE_SIZE = 128

# Cameras of the world, in world units and radians: close enough that an object fills the picture.
RADIUS = 3.5  # always the same, since no sentence tells how large a thing looks
POLAR_RANGE = (math.radians(30.0), math.radians(90.0))  # from +z: from well above down to the horizon
FIELD_OF_VIEW = 0.5

# For pictures of 64 pixels; larger ones, with smaller pixels, use more steps and a smaller distance.
_COARSE_SIZE = 64
_TRACE_STEPS = 40
_HIT_DISTANCE = 4e-3  # a seventh of a pixel at the object
_REACH = 1.0  # objects lie within this distance of the origin
_SUPERSAMPLING = 2  # per axis
_LIGHT_DIRECTION = (0.33, 0.0, 0.944)  # unit, y = 0 for mirror symmetry
_AMBIENT, _DIFFUSE = 0.66, 0.34


@struct.dataclass
class Layers:
    """One traced view before painting.

    Attributes:
        primary: (H, W) shade × fraction of the pixel with the primary paint.
        secondary: (H, W) the same for the secondary paint.
        fixed: (H, W, 3) shade × color × fraction, of solids with a fixed color.
        alpha: (H, W) fraction of the pixel that the object covers.
    """

    primary: jax.Array
    secondary: jax.Array
    fixed: jax.Array
    alpha: jax.Array


def toybox_camera(
    azimuth: jax.Array | float,
    polar: jax.Array | float,
    radius: jax.Array | float = RADIUS,
    *,
    size: int = IMAGE_SIZE,
) -> Camera:
    """Camera of the world, looking at the origin.

    Args:
        azimuth: radians, 0 = on +x, counterclockwise seen from above.
        polar: radians from +z.
        radius: distance to the origin, world units.
        size: edge of the picture, pixels.

    Returns:
        The camera.
    """
    return orbit_camera(azimuth=azimuth, polar=polar, radius=radius, fov=FIELD_OF_VIEW, size=size)


def random_camera(key: jax.Array, *, size: int = IMAGE_SIZE) -> Camera:
    """A camera drawn uniformly from those that the bundled model was trained on."""
    azimuth_key, polar_key = jax.random.split(key)
    return toybox_camera(
        jax.random.uniform(azimuth_key, minval=-jnp.pi, maxval=jnp.pi),
        jax.random.uniform(polar_key, minval=POLAR_RANGE[0], maxval=POLAR_RANGE[1]),
        size=size,
    )


def _rays(camera: Camera) -> jax.Array:
    """World directions (H·s·W·s, 3) through the subpixel centers, s = supersampling."""
    count = _SUPERSAMPLING
    rows = (jnp.arange(camera.height * count) + 0.5) / count
    columns = (jnp.arange(camera.width * count) + 0.5) / count
    focal_x, focal_y, center_x, center_y = camera.intrinsics
    x, y = jnp.meshgrid((columns - center_x) / focal_x, (rows - center_y) / focal_y)
    local = jnp.stack([x, y, jnp.ones_like(x)], axis=-1).reshape(-1, 3)
    directions = local @ camera.world_to_camera[:3, :3]  # rows of the rotation are the camera's axes
    return directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)


def _distances(kind: str, points: jax.Array) -> jax.Array:
    """Signed distances (solids, ...) of points (..., 3) to the solids of a kind."""
    return jnp.stack([solid.distance for solid in KINDS[kind].solids(points)])


@partial(jax.jit, static_argnums=0)
def distance_to(kind: str, points: jax.Array) -> jax.Array:
    """Signed distance (...,) of points (..., 3) to the surface of a kind (static): negative inside."""
    return jnp.min(_distances(kind, points), axis=0)


def _march(kind: str, camera: Camera) -> tuple[jax.Array, jax.Array]:
    """Where the rays of a camera meet a kind: points (R, 3), and whether they do (R,)."""
    # Rays that pass close to a surface need many steps: with this number, one in twenty on the outline of a
    # picture of 512 pixels stops too early.
    fineness = max(1.0, camera.height / _COARSE_SIZE)
    steps, hit_distance = math.ceil(_TRACE_STEPS * math.sqrt(fineness)), _HIT_DISTANCE / fineness

    origin = camera_center(camera)
    directions = _rays(camera)
    # Rays start and end on the sphere that contains the object.
    middle = -directions @ origin
    half_chord = jnp.sqrt(jnp.maximum(middle**2 - origin @ origin + _REACH**2, 0.0))

    def march(_: int, traveled: jax.Array) -> jax.Array:
        return jnp.minimum(
            traveled + distance_to(kind, origin + traveled[:, None] * directions), middle + half_chord
        )

    traveled = jax.lax.fori_loop(0, steps, march, middle - half_chord)
    points = origin + traveled[:, None] * directions
    return points, (distance_to(kind, points) < hit_distance) & (half_chord > 0.0)


@partial(jax.jit, static_argnums=0)
def surface(kind: str, camera: Camera) -> tuple[jax.Array, jax.Array]:
    """Points of a kind (static) that a camera sees.

    Returns:
        The points (R, 3) that the rays end at, four rays a pixel, and whether they lie on the object (R,).
    """
    return _march(kind, camera)


@partial(jax.jit, static_argnums=0)
def trace(kind: str, camera: Camera) -> Layers:
    """Trace one view of a kind (static); `paint_layers` adds the colors."""
    points, hit = _march(kind, camera)

    nearest = jnp.argmin(_distances(kind, points), axis=0)
    # Not the gradient of the minimum: that tests which distance equals the minimum, and if the compiler
    # computes a distance twice with different rounding, none does.
    normals = jax.grad(lambda p: jnp.sum(jnp.take_along_axis(_distances(kind, p), nearest[None], axis=0)))(
        points
    )
    facing = jnp.maximum(normals @ jnp.asarray(_LIGHT_DIRECTION), 0.0)
    met = KINDS[kind].solids(points)
    textures = jnp.stack([jnp.broadcast_to(solid.texture, nearest.shape) for solid in met])
    texture = jnp.take_along_axis(textures, nearest[None], axis=0)[0]
    light = _AMBIENT + _DIFFUSE * facing / jnp.maximum(jnp.linalg.norm(normals, axis=-1), 1e-6)
    shade = jnp.where(hit, texture * light, 0.0)

    paints = [solid.paint for solid in met]
    own_colors = jnp.asarray([(0.0, 0.0, 0.0) if isinstance(paint, str) else paint for paint in paints])

    def shade_of(slot: str) -> jax.Array:
        return jnp.asarray([paint == slot for paint in paints])[nearest] * shade

    def to_pixels(values: jax.Array) -> jax.Array:
        count = _SUPERSAMPLING
        grid = values.reshape(camera.height, count, camera.width, count, -1).mean(axis=(1, 3))
        return grid if values.ndim > 1 else grid[..., 0]

    return Layers(
        primary=to_pixels(shade_of(PRIMARY)),
        secondary=to_pixels(shade_of(SECONDARY)),
        fixed=to_pixels(own_colors[nearest] * shade[:, None]),
        alpha=to_pixels(hit.astype(shade.dtype)),
    )


def paint_layers(
    layers: Layers, primary: jax.Array, secondary: jax.Array, background: jax.Array
) -> jax.Array:
    """Add colors and a background to traced views.

    Args:
        layers: (..., H, W) traced views.
        primary: (..., 3) RGB in [0, 1].
        secondary: (..., 3) RGB in [0, 1].
        background: (..., 3) RGB in [0, 1].

    Returns:
        Pictures (..., H, W, 3) in [0, 1].
    """

    def over_pixels(color: jax.Array) -> jax.Array:
        return jnp.asarray(color)[..., None, None, :]

    return (
        layers.primary[..., None] * over_pixels(primary)
        + layers.secondary[..., None] * over_pixels(secondary)
        + layers.fixed
        + (1.0 - layers.alpha[..., None]) * over_pixels(background)
    )


def sentence_colors(sentence: Sentence) -> tuple[jax.Array, jax.Array]:
    """Primary and secondary color of a sentence, (3,) RGB each."""
    second = sentence.second_color or KINDS[sentence.kind].part_color
    return jnp.asarray(COLORS[sentence.color]), jnp.asarray(COLORS[second])


def render_sentence(sentence: Sentence, camera: Camera, *, background: jax.Array) -> jax.Array:
    """Ground-truth picture (H, W, 3) of a sentence over a color (3,); its view phrase is ignored."""
    return paint_layers(trace(sentence.kind, camera), *sentence_colors(sentence), background)
