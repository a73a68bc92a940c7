"""A slow reference renderer: march along each ray in small equal steps to the first point in an object."""

import jax.numpy as jnp
import numpy as np

from ge3d_jax.toybox.world.objects import KINDS

RADIUS, FIELD_OF_VIEW = 3.5, 0.5
_LIGHT = np.asarray((0.33, 0.0, 0.944))
_DIFFERENCE = 1e-3


def camera_frame(azimuth, polar):
    """The position of a camera that looks at the origin, and its right, down and forward axes."""
    position = RADIUS * np.asarray(
        (np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar))
    )
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return position, right, np.cross(forward, right), forward


def distances(kind, points):
    solids = KINDS[kind].solids(jnp.asarray(points, jnp.float32))
    return np.asarray(jnp.stack([solid.distance for solid in solids]))


def textures(kind, places):
    """Light factor of the solid's texture at surface points (N, 3)."""
    solids = KINDS[kind].solids(jnp.asarray(places, jnp.float32))
    nearest = np.argmin([solid.distance for solid in solids], axis=0)
    return np.asarray(
        [np.broadcast_to(solids[index].texture, nearest.shape)[row] for row, index in enumerate(nearest)]
    )


def march(kind, azimuth, polar, positions, *, step=2.5e-3):
    """Intersect the rays through `positions` (N, 2), in units of half the picture's height, with the solids.

    Returns: index of the solid hit (N,), -1 for none; hit points (N, 3).
    """
    origin, right, down, forward = camera_frame(azimuth, polar)
    reach = np.tan(FIELD_OF_VIEW / 2)
    rays = forward + reach * (positions[:, :1] * right + positions[:, 1:] * down)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    steps = np.arange(RADIUS - 1.0, RADIUS + 1.0, step)
    met, places = np.full(len(rays), -1), np.zeros((len(rays), 3))
    for start in range(0, len(rays), 64):
        points = origin + steps[None, :, None] * rays[start : start + 64, None, :]
        values = distances(kind, points)
        is_inside = values.min(axis=0) < 0
        first = is_inside.argmax(axis=1)
        rows = np.arange(len(points))
        met[start : start + 64] = np.where(is_inside.any(axis=1), values.argmin(axis=0)[rows, first], -1)
        places[start : start + 64] = points[rows, first]
    return met, places


def shade(kind, places):
    """Light reflected at surface points (N, 3), with normals from central differences and without texture."""
    offsets = _DIFFERENCE * np.eye(3)
    slopes = [
        distances(kind, places + offset).min(axis=0) - distances(kind, places - offset).min(axis=0)
        for offset in offsets
    ]
    normals = np.stack(slopes, axis=-1)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    return 0.66 + 0.34 * np.maximum(normals @ _LIGHT, 0.0)


def paint_picture(kind, azimuth, *, size=16):
    """Paint index at each pixel's center, -1 for none: (size, size)."""
    centers = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(centers, centers)
    positions = np.stack([x.ravel(), y.ravel()], axis=-1)
    met, _ = march(kind, azimuth, np.deg2rad(80.0), positions, step=1e-2)
    paints = [solid.paint for solid in KINDS[kind].solids(jnp.zeros((1, 3)))]
    numbers = np.asarray([paints.index(paint) for paint in paints] + [-1])
    return numbers[met].reshape(size, size)
