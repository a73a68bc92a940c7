"""From colored points to splats: how their number grows, how large, opaque and colored they begin.

Two ways are published. The paper's: each point at the same 20 offsets within a small ball, near gray.
GaussianDreamer's (arXiv 2310.08529): points drawn evenly in the box around the cloud are kept where they are
near the cloud, and take the nearest point's color with some noise.
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

# Fewer points have no three neighbors.
_LEAST_POINTS = 4
_Cloud = TypeVar("_Cloud", bound="CloudStart")


class Growth(Protocol):
    """Settings of a way to have more points, and the way; a frozen dataclass."""

    # Settings of the start that go with it.
    with_it: ClassVar[Mapping[str, Any]]

    def grown(self, cloud: PointCloud, rng: np.random.Generator) -> PointCloud:
        """The cloud with more points; `cloud` has colors."""


@dataclasses.dataclass(frozen=True)
class Clones:
    """The paper's: each point at the same offsets.

    Attributes:
        number: of offsets, and so of splats for each point.
        reach: largest length of an offset, world units.
    """

    with_it: ClassVar[Mapping[str, Any]] = {"colored": False}

    number: int = 20
    reach: float = 0.05

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(**{"growth.number": (self.number, 1), "growth.reach": (self.reach, 0)})

    def grown(self, cloud: PointCloud, rng: np.random.Generator) -> PointCloud:
        """The points at the offsets, those of a point in a row.

        As in the public code, length and both angles of an offset are drawn evenly, so that they are densest
        in the middle and along the axis.
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
    """GaussianDreamer's: points drawn in the box around the cloud, where they are near it.

    Attributes:
        candidates: how many are drawn.
        distance: to the nearest point, at most, world units.
        color_noise: added to its color, even between 0 and this.
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
        """The drawn points that were kept, then the cloud's own."""
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
    """No further points."""

    with_it: ClassVar[Mapping[str, Any]] = {"colored": True}

    def grown(self, cloud: PointCloud, rng: np.random.Generator) -> PointCloud:
        """The cloud."""
        return cloud


GROWTHS: dict[str, type[Growth]] = {"clones": Clones, "gaussian_dreamer": GaussianDreamer, "none": AsItIs}


@dataclasses.dataclass(frozen=True)
class CloudStart:
    """Settings that all starts of points share.

    Attributes:
        growth: how there come to be more points.
        colored: whether splats have their points' colors, else they are gray.
        gray: color without, 0 black … 1 white.
        scale: standard deviation of each splat, world units; None: RMS distance to its three neighbors.
        opacity: of each splat, within (0, 1).
        sh_degree: degree of the color's spherical harmonics; those above 0 begin at 0.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toybox": {"growth.kind": "none", "colored": True, "opacity": 0.27}
    }

    growth: Growth = choice(lambda: GROWTHS, Clones())
    colored: bool = False
    gray: float = 0.5
    scale: float | None = None
    opacity: float = 0.1
    sh_degree: int = 0

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_look(self.opacity, self.sh_degree)
        if self.scale is not None and self.scale <= 0:
            raise UserError(f"The setting start.scale is {self.scale}; give a number above 0, or null.")

    @property
    def count(self) -> int:
        """Only the points tell."""
        return 0

    def words_of(self, prompt: str) -> tuple[str, Path] | None:
        """No model."""
        return None

    def asked_for(self: _Cloud, prompt: str) -> _Cloud:
        """The same for all prompts."""
        return self

    def splats(self, cloud: PointCloud, source: str, rng: np.random.Generator) -> Gaussians:
        """Splats at the points.

        Args:
            cloud: the points, in the world's axes.
            source: what they are, for messages.
            rng: for what is drawn.

        Raises:
            UserError: too few points, all at one place, or without the colors that are wanted.
        """
        check_cloud(cloud, source)
        if cloud.colors is None and self.colored:
            raise UserError(
                f"{source} has no colors; give one with red, green and blue, or --set=start.colored=false "
                "for gray splats."
            )
        gray = np.full(cloud.positions.shape, self.gray, np.float32)
        grown = self.growth.grown(PointCloud(cloud.positions, cloud.colors if self.colored else gray), rng)
        count = len(grown.positions)
        if self.scale is None:
            sizes = np.asarray(nearest_neighbor_scales(grown.positions))
            if not sizes.any():
                raise UserError(f"The splats of {source} lie on one another; set start.scale.")
            # Four points at one place have no distance; the least one that there is will do.
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
    """Refuse a cloud that is no object. Raises UserError."""
    count = len(cloud.positions)
    if count < _LEAST_POINTS:
        points = "1 point" if count == 1 else f"{count} points"
        raise UserError(f"{source} has {points}; give a cloud of at least {_LEAST_POINTS}.")
    if np.all(cloud.positions == cloud.positions[0]):
        raise UserError(f"All {count} points of {source} are at one place; give a cloud that has a shape.")


def rng_of(key: jax.Array) -> np.random.Generator:
    """A generator of NumPy that draws what the key says."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
