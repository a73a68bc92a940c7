"""Splats to start from where no point cloud is at hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import normal
from ge3d_jax.splatting.gaussians import MAX_SH_DEGREE, Gaussians, make_gaussians

# Neighbours whose distance sets a splat's size where none is given.
_NEIGHBORS = 3


def nearest_neighbor_scales(positions: jax.Array) -> jax.Array:
    """RMS distance of each of (N, 3) positions to its three nearest others; (N,), on the host."""
    points = np.asarray(positions)
    if len(points) <= _NEIGHBORS:
        raise UserError(
            f"The start has {len(points)} splats, too few to size them by their neighbors; "
            f"set start.scale or take more than {_NEIGHBORS}."
        )
    distances, _ = cKDTree(points).query(points, k=_NEIGHBORS + 1)
    return jnp.asarray(np.sqrt(np.mean(distances[:, 1:] ** 2, axis=1)), jnp.float32)


@partial(jax.jit, static_argnames="count")
def _in_unit_ball(key: jax.Array, count: int) -> jax.Array:
    direction_key, radius_key = jax.random.split(key)
    directions = normal(direction_key, (count, 3))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    # Volume grows with the cube of the radius.
    return directions * jnp.cbrt(jax.random.uniform(radius_key, (count, 1)))


def ball(
    key: jax.Array,
    *,
    count: int,
    radius: float,
    opacity: float,
    scale: float | None = None,
    gray: float = 0.5,
    sh_degree: int = 0,
    capacity: int | None = None,
) -> Gaussians:
    """Round gray splats, uniform in a ball around the origin.

    Args:
        count: number of splats.
        radius: of the ball, world units.
        opacity: of each splat, within (0, 1).
        scale: standard deviation of each splat, world units; None: RMS distance to its three neighbors.
        gray: color, 0 black … 1 white.
        sh_degree: degree of the color's spherical harmonics; those above 0 begin at 0.
        capacity: length of the padded buffer, at least `count`, which is the default.
    """
    positions = radius * _in_unit_ball(key, count)
    sizes = nearest_neighbor_scales(positions) if scale is None else jnp.full(count, scale)
    return make_gaussians(
        positions,
        jnp.full((count, 3), gray),
        jnp.broadcast_to(sizes[:, None], (count, 3)),
        jnp.full(count, opacity),
        capacity=count if capacity is None else capacity,
        sh_degree=sh_degree,
    )


@dataclasses.dataclass(frozen=True)
class Ball:
    """Settings of a ball of gray splats.

    Attributes:
        count, radius, scale, opacity, gray, sh_degree: see `ball`.
    """

    count: int = 100_000
    radius: float = 0.5
    scale: float | None = None
    opacity: float = 0.1
    gray: float = 0.5
    sh_degree: int = 0

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        if self.count < 1:
            raise UserError(f"The setting start.count is {self.count}, but at least 1 is needed; raise it.")
        if not 0 < self.opacity < 1:
            raise UserError(f"The setting start.opacity is {self.opacity}; give a number between 0 and 1.")
        if not 0 <= self.sh_degree <= MAX_SH_DEGREE:
            raise UserError(
                f"The setting start.sh_degree is {self.sh_degree}; give one from 0 to {MAX_SH_DEGREE}."
            )

    def gaussians(self, key: jax.Array) -> Gaussians:
        """The splats."""
        return ball(
            key,
            count=self.count,
            radius=self.radius,
            opacity=self.opacity,
            scale=self.scale,
            gray=self.gray,
            sh_degree=self.sh_degree,
        )
