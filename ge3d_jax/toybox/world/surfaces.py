"""Exact points on the surfaces of Toybox objects, where their signed distance is zero."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.toybox.world.objects import COLORS, KINDS, PRIMARY, SECONDARY

# Objects lie within this distance of the origin along each axis.
_REACH = 0.9
# Points are drawn in a shell extending this far to either side, and then moved onto the surface. Where the
# surface is curved, there is more of the shell on one side and less on the other.
_SHELL = 0.03
_CANDIDATES = 2**18
_NEWTON_STEPS = 6
_ON_SURFACE = 1e-3
# Ellipsoids have distance bounds, whose gradients differ from 1 off the surface, though hardly by more.
_STEEPEST = 1.25


@struct.dataclass
class Surface:
    """Points of a single object, or of several with a leading axis.

    Attributes:
        positions: (P, 3) world units.
        primary, secondary: (P,) 1 where the point has that paint, else 0.
        fixed: (P, 3) RGB of points with a fixed color, else 0.
    """

    positions: jax.Array
    primary: jax.Array
    secondary: jax.Array
    fixed: jax.Array


def _distances(kind: str, points: jax.Array) -> jax.Array:
    """Signed distances (S, ...) of points (..., 3) to the solids of a kind."""
    return jnp.stack([solid.distance for solid in KINDS[kind].solids(points)])


@partial(jax.jit, static_argnames="kind")
def _candidates(key: jax.Array, *, kind: str) -> tuple[jax.Array, jax.Array]:
    """Return points on the surface (C, 3), and which to keep for an even distribution (C,)."""

    def distance(point: jax.Array) -> jax.Array:
        # Of the nearest solid alone: where two are equally near, the minimum of both has no gradient.
        each = _distances(kind, point)
        return each[jnp.argmin(each)]

    gradient = jax.vmap(jax.value_and_grad(distance))
    place_key, lot_key = jax.random.split(key)
    drawn = jax.random.uniform(place_key, (_CANDIDATES, 3), minval=-_REACH, maxval=_REACH)
    value, slope = gradient(drawn)
    steepness = jnp.linalg.norm(slope, axis=1)
    # The shell |f| < h is 2h/|∇f| thick, so it has fewer points where f is steep.
    lots = jax.random.uniform(lot_key, (_CANDIDATES,)) * _STEEPEST
    kept = (jnp.abs(value) < _SHELL) & (lots < steepness)

    def newton(_: int, points: jax.Array) -> jax.Array:
        value, slope = gradient(points)
        square = jnp.maximum(jnp.sum(slope**2, axis=1), 1e-6)
        return points - (value / square)[:, None] * slope

    # Only nearby points need to be moved, but shapes are static.
    near = jnp.argsort(~kept, stable=True)[: _CANDIDATES // 16]
    moved = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, drawn[near])
    return moved, kept[near] & (jnp.abs(gradient(moved)[0]) < _ON_SURFACE)


def sample_surface(key: jax.Array, kind: str, count: int) -> Surface:
    """Sample points uniformly on the surface of an object.

    Args:
        key: PRNG key.
        kind: a key of KINDS.
        count: P.

    Returns:
        The points with their paints.
    """
    found: list[np.ndarray] = []
    while sum(map(len, found)) < count:
        key, own = jax.random.split(key)
        points, kept = (np.asarray(array) for array in _candidates(own, kind=kind))
        found.append(points[kept])
    positions = np.concatenate(found)[:count]
    nearest = np.asarray(jnp.argmin(_distances(kind, jnp.asarray(positions)), axis=0))
    paints = [solid.paint for solid in KINDS[kind].solids(jnp.zeros(3))]
    own_colors = np.array([(0.0,) * 3 if isinstance(paint, str) else paint for paint in paints], np.float32)
    has = {slot: np.array([paint == slot for paint in paints], np.float32) for slot in (PRIMARY, SECONDARY)}
    arrays = (positions, has[PRIMARY][nearest], has[SECONDARY][nearest], own_colors[nearest])
    return Surface(*map(jnp.asarray, arrays))


def paint_surface(surface: Surface, primary: jax.Array, secondary: jax.Array) -> jax.Array:
    """Colors (..., P, 3) of points, given paints (..., 3) RGB in [0, 1]."""
    return (
        surface.primary[..., None] * primary[..., None, :]
        + surface.secondary[..., None] * secondary[..., None, :]
        + surface.fixed
    )


def palette() -> np.ndarray:
    """RGB (12, 3) of the colors, in the order of COLORS."""
    return np.asarray(list(COLORS.values()), np.float32)
