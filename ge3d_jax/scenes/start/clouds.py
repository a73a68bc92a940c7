"""From colored points to splats: how points are multiplied, and the splats' initial size, opacity, and color.

Two published methods are available. The GE3D paper copies each point to the same 20 offsets within a small
ball, nearly gray. GaussianDreamer (arXiv 2310.08529) draws points uniformly in the cloud's bounding box,
keeps those near the cloud, and gives them the nearest point's color plus some noise.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import check_at_least, choice
from ge3d_jax.formats.point_clouds import PointCloud
from ge3d_jax.scenes.start.base import check_look, nearest_neighbor_scales
from ge3d_jax.splatting.gaussians import Gaussians, make_gaussians

# With fewer points, none has three neighbors.
_LEAST_POINTS = 4
_Cloud = TypeVar("_Cloud", bound="CloudStart")


class Growth(Protocol):
    """A method of multiplying points, with its settings; a frozen dataclass."""

    # Settings of the start that go with the method.
    with_it: ClassVar[Mapping[str, Any]]

    def grown(self, cloud: PointCloud, rng: np.random.Generator) -> PointCloud:
        """Return the cloud with more points; `cloud` has colors."""


@dataclasses.dataclass(frozen=True)
class Clones:
    """The GE3D paper's method: copies of each point at the same offsets.

    Attributes:
        number: number of offsets, and thus of splats per point.
        reach: largest length of an offset, world units.
    """

    with_it: ClassVar[Mapping[str, Any]] = {"colored": False}

    number: int = 20
    reach: float = 0.05

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(**{"growth.number": (self.number, 1), "growth.reach": (self.reach, 0)})

    def grown(self, cloud: PointCloud, rng: np.random.Generator) -> PointCloud:
        """Copy the points to the offsets; the copies of a point are consecutive.

        As in the public code, the length and both angles of an offset are drawn uniformly, so offsets are
        densest at the center and along the axis.
        """
        assert cloud.colors is not None
        polar, turn = np.pi * rng.random(self.number), 2 * np.pi * rng.random(self.number)
        length = self.reach * rng.random(self.number)
        sides = [np.sin(polar) * np.sin(turn), np.sin(polar) * np.cos(turn), np.cos(polar)]
        offsets = (length * np.stack(sides)).T.astype(np.float32)
        positions = (cloud.positions[:, None] + offsets).reshape(-1, 3)
        return PointCloud(positions, np.repeat(cloud.colors, self.number, axis=0))


@dataclasses.dataclass(frozen=True)
class GaussianDreamer:
    """GaussianDreamer's method: points drawn in the cloud's bounding box and kept if near the cloud.

    Attributes:
        candidates: number of points drawn.
        distance: maximum distance to the nearest point of the cloud, world units.
        color_noise: noise added to that point's color, uniform between 0 and this value.
    """

    with_it: ClassVar[Mapping[str, Any]] = {"colored": True}

    candidates: int = 1_000_000
    distance: float = 0.01
    color_noise: float = 0.2

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(
            **{"growth.candidates": (self.candidates, 0), "growth.color_noise": (self.color_noise, 0)}
        )
        if self.distance <= 0:
            raise UserError(f"The setting growth.distance is {self.distance}; give a number above 0.")

    def grown(self, cloud: PointCloud, rng: np.random.Generator) -> PointCloud:
        """Return the drawn points that were kept, followed by the cloud's own."""
        assert cloud.colors is not None
        low, high = cloud.positions.min(axis=0), cloud.positions.max(axis=0)
        drawn = (low + (high - low) * rng.random((self.candidates, 3))).astype(np.float32)
        distances, nearest = cKDTree(cloud.positions).query(drawn, distance_upper_bound=self.distance)
        near = np.isfinite(distances)
        noise = self.color_noise * rng.random((int(near.sum()), 3))
        colors = np.clip(cloud.colors[nearest[near]] + noise, 0.0, 1.0).astype(np.float32)
        return PointCloud(
            np.concatenate([drawn[near], cloud.positions]), np.concatenate([colors, cloud.colors])
        )


@dataclasses.dataclass(frozen=True)
class AsItIs:
    """No additional points."""

    with_it: ClassVar[Mapping[str, Any]] = {"colored": True}

    def grown(self, cloud: PointCloud, rng: np.random.Generator) -> PointCloud:
        """Return the cloud unchanged."""
        return cloud


GROWTHS: dict[str, type[Growth]] = {"clones": Clones, "gaussian_dreamer": GaussianDreamer, "none": AsItIs}


@dataclasses.dataclass(frozen=True)
class CloudStart:
    """Settings shared by all starts from points.

    Attributes:
        growth: how points are multiplied.
        colored: whether splats have their points' colors; otherwise they are gray.
        gray: color of gray splats, 0 black … 1 white.
        scale: standard deviation of each splat, world units; None: RMS distance to its three neighbors.
        opacity: of each splat, within (0, 1).
        sh_degree: degree of the color's spherical harmonics; bands above 0 start at zero.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toybox": {"growth.kind": "none", "colored": True, "opacity": 0.27}
    }
    is_learned: ClassVar[bool] = False

    growth: Growth = choice(lambda: GROWTHS, Clones())
    colored: bool = False
    gray: float = 0.5
    scale: float | None = None
    opacity: float = 0.1
    sh_degree: int = 0

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_look(self.opacity, self.scale, self.sh_degree)

    @property
    def count(self) -> int:
        """0: known only from the points."""
        return 0

    def words_of(self, prompt: str) -> tuple[str, Path] | None:
        """Return None: there is no start model."""
        return None

    def asked_for(self: _Cloud, prompt: str) -> _Cloud:
        """Return the same start for all prompts."""
        return self

    def splats(self, cloud: PointCloud, source: str, rng: np.random.Generator) -> Gaussians:
        """Create splats at the points.

        Args:
            cloud: the points, in world axes.
            source: description of the points, for messages.
            rng: random number generator.

        Raises:
            UserError: there are too few points, they all coincide, or they lack the required colors.
        """
        check_cloud(cloud, source)
        if cloud.colors is None and self.colored:
            raise UserError(
                f"{source} has no colors; give a cloud with red, green, and blue, or use "
                "--set=start.colored=false for gray splats."
            )
        gray = np.full(cloud.positions.shape, self.gray, np.float32)
        grown = self.growth.grown(PointCloud(cloud.positions, cloud.colors if self.colored else gray), rng)
        count = len(grown.positions)
        if self.scale is None:
            sizes = np.asarray(nearest_neighbor_scales(grown.positions))
            if not sizes.any():
                raise UserError(f"The splats of {source} all coincide; set start.scale.")
            # Four coincident points have distance zero; use the smallest nonzero one.
            sizes = np.maximum(sizes, sizes[sizes > 0].min())
        else:
            sizes = np.full(count, self.scale, np.float32)
        return make_gaussians(
            jnp.asarray(grown.positions, jnp.float32),
            jnp.asarray(grown.colors, jnp.float32),
            jnp.asarray(sizes, jnp.float32),
            jnp.full(count, self.opacity),
            capacity=count,
            sh_degree=self.sh_degree,
        )


def check_cloud(cloud: PointCloud, source: str) -> None:
    """Reject a cloud that cannot represent an object. Raises UserError."""
    count = len(cloud.positions)
    if count < _LEAST_POINTS:
        points = "1 point" if count == 1 else f"{count} points"
        raise UserError(f"{source} has {points}; give a cloud of at least {_LEAST_POINTS}.")
    if np.all(cloud.positions == cloud.positions[0]):
        raise UserError(f"All {count} points of {source} are at one place; give a cloud that has a shape.")


def rng_of(key: jax.Array) -> np.random.Generator:
    """Return a NumPy generator seeded with the key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
