"""Gray splats in a ball or a box: starts that need no other input."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import normal
from ge3d_jax.scenes.start.base import check_look, nearest_neighbor_scales
from ge3d_jax.splatting.gaussians import Gaussians, make_gaussians

_Gray = TypeVar("_Gray", bound="_GrayStart")


@partial(jax.jit, static_argnames="count")
def _in_unit_ball(key: jax.Array, count: int) -> jax.Array:
    direction_key, radius_key = jax.random.split(key)
    directions = normal(direction_key, (count, 3))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    # Volume grows with the cube of the radius.
    return directions * jnp.cbrt(jax.random.uniform(radius_key, (count, 1)))


def gray_splats(
    positions: jax.Array,
    *,
    opacity: float,
    scale: float | None = None,
    gray: float = 0.5,
    sh_degree: int = 0,
    capacity: int | None = None,
) -> Gaussians:
    """Create isotropic gray splats.

    Args:
        positions: (N, 3) centers, world units.
        opacity: of each splat, within (0, 1).
        scale: standard deviation of each splat, world units; None: RMS distance to its three neighbors.
        gray: color, 0 black … 1 white.
        sh_degree: degree of the color's spherical harmonics; bands above 0 start at zero.
        capacity: length of the padded buffer, at least N; defaults to N.
    """
    count = len(positions)
    sizes = nearest_neighbor_scales(positions) if scale is None else jnp.full(count, scale)
    return make_gaussians(
        positions,
        jnp.full((count, 3), gray),
        jnp.broadcast_to(sizes[:, None], (count, 3)),
        jnp.full(count, opacity),
        capacity=count if capacity is None else capacity,
        sh_degree=sh_degree,
    )


def ball(key: jax.Array, *, count: int, radius: float, **look: Any) -> Gaussians:
    """Create splats distributed uniformly in a ball around the origin.

    Args:
        key: PRNG key.
        count: number of splats.
        radius: of the ball, world units.
        look: see `gray_splats`.
    """
    return gray_splats(radius * _in_unit_ball(key, count), **look)


def box(key: jax.Array, *, count: int, radius: float, **look: Any) -> Gaussians:
    """Create splats distributed uniformly in a cube around the origin with edge 2·`radius`; see `ball`."""
    return gray_splats(jax.random.uniform(key, (count, 3), minval=-radius, maxval=radius), **look)


@dataclasses.dataclass(frozen=True)
class _GrayStart:
    """Settings of gray splats.

    Attributes:
        count, radius, scale, opacity, gray, sh_degree: see `ball`.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    reads_file: ClassVar[bool] = False
    is_learned: ClassVar[bool] = False

    count: int = 100_000
    radius: float = 0.5
    scale: float | None = None
    opacity: float = 0.1
    gray: float = 0.5
    sh_degree: int = 0

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        if self.count < 1:
            raise UserError(f"The setting start.count is {self.count}, but at least 1 is needed; raise it.")
        if self.radius <= 0:
            raise UserError(f"The setting start.radius is {self.radius}; give a number above 0.")
        check_look(self.opacity, self.scale, self.sh_degree)

    def check(self) -> None:
        """Do nothing: no files are needed."""

    def words_of(self, prompt: str) -> tuple[str, Path] | None:
        """Return None: there is no start model."""
        return None

    def asked_for(self: _Gray, prompt: str) -> _Gray:
        """Return the same start for all prompts."""
        return self


@dataclasses.dataclass(frozen=True)
class Ball(_GrayStart):
    """A ball of gray splats."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # A smaller ball leaves objects smaller than the ground truth.
        "toybox": {"count": 6000, "radius": 0.62, "scale": 0.026, "opacity": 0.27},
        "toybox64": {"count": 1600, "radius": 0.5, "scale": 0.042, "opacity": 0.27},
    }

    def gaussians(self, key: jax.Array) -> Gaussians:
        """Create the splats."""
        return ball(key, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Box(_GrayStart):
    """A cube of gray splats with edge 2·`radius`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toybox": {"count": 6000, "radius": 0.5, "scale": 0.026, "opacity": 0.27},
        "toybox64": {"count": 1600, "radius": 0.4, "scale": 0.042, "opacity": 0.27},
    }

    def gaussians(self, key: jax.Array) -> Gaussians:
        """Create the splats."""
        return box(key, **dataclasses.asdict(self))
