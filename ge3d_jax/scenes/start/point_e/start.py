"""Initialization with Point-E: from the prompt to splats."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.point_clouds import PointCloud
from ge3d_jax.scenes.start.clouds import CloudStart, rng_of
from ge3d_jax.scenes.start.point_e.files import check_files, model_place, open_point_e
from ge3d_jax.scenes.start.point_e.model import sample_clouds
from ge3d_jax.splatting.gaussians import Gaussians

BUNDLED = "bundled"
# The bundled model's clouds are half as large as the objects of the Toybox world.
BUNDLED_SIZE = 2.0
# Settings for the bundled model, whose objects are centered and not mirrored.
_BUNDLED_SETTINGS = {"model": BUNDLED, "mirrored": False, "lift": 0.0, "size": BUNDLED_SIZE, "colored": True}


def in_world_axes(cloud: PointCloud, *, mirrored: bool, lift: float, size: float = 1.0) -> PointCloud:
    """Convert a Point-E cloud, which faces -y, to the world's axes, facing +x.

    Args:
        cloud: cloud in Point-E's axes, z up.
        mirrored: whether to swap left and right, as in the paper's public code.
        lift: height offset, applied after scaling.
        size: world units per unit of the cloud.
    """
    x, y, z = np.float32(size) * cloud.positions.T
    positions = np.stack([-y, -x if mirrored else x, z + np.float32(lift)], axis=-1)
    return PointCloud(positions.astype(np.float32), cloud.colors)


@functools.lru_cache(maxsize=8)
def _sampled(place: Path, clip: str, prompt: str, key: tuple[int, ...]) -> PointCloud:
    """Sample a cloud, cached for runs that are resumed or restarted."""
    model, encode = open_point_e(place, clip)
    return sample_clouds(model, encode([prompt]), jax.random.wrap_key_data(jnp.asarray(key, jnp.uint32)))[0]


@dataclasses.dataclass(frozen=True)
class PointEStart(CloudStart):
    """Start from a Point-E cloud for the prompt, with the paper's settings.

    Attributes:
        prompt: prompt for Point-E; None uses the run's prompt.
        model: folder with the networks' files, or "bundled" for the small model of the Toybox world; None is
            the folder point_e in the cache folder, where the published files go.
        clip: text encoder of the published networks: a folder, or a hub id. The small model has its own.
        mirrored: whether to swap left and right, as in the paper's public code.
        lift: height offset, world units, as in the paper's public code.
        size: world units per Point-E unit; Point-E's clouds have a size of about 1.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Five splats for each of 1024 points: nearly as many as in the ball. The points lie on the surface
        # only, so unless splats are opaque, its far side shows through.
        "toybox": {
            **_BUNDLED_SETTINGS,
            "growth.kind": "clones",
            "growth.number": 5,
            "scale": 0.03,
            "opacity": 0.8,
        },
        "toybox64": {**_BUNDLED_SETTINGS, "growth.kind": "none", "scale": 0.05, "opacity": 0.27},
    }
    reads_file: ClassVar[bool] = False

    prompt: str | None = None
    model: str | None = None
    clip: str = "openai/clip-vit-large-patch14"
    mirrored: bool = True
    lift: float = 0.15
    size: float = 1.0

    def check(self) -> None:
        """Check that the files exist. Raises UserError that says where to get them."""
        check_files(model_place(self.model), self.clip)

    def words_of(self, prompt: str) -> tuple[str, Path] | None:
        """The start's own prompt, or the run's, and the folder of the networks."""
        return prompt if self.prompt is None else self.prompt, model_place(self.model)

    def asked_for(self, prompt: str) -> "PointEStart":
        """This start for the given prompt, unless it has its own."""
        return self if self.prompt is not None else dataclasses.replace(self, prompt=prompt)

    def cloud(self, key: jax.Array) -> PointCloud:
        """The points, in the world's axes. Raises UserError if there is no prompt."""
        if self.prompt is None:
            raise UserError("Point-E has no prompt; set start.prompt.")
        numbers = tuple(np.asarray(jax.random.key_data(key)).tolist())
        cloud = _sampled(model_place(self.model), self.clip, self.prompt, numbers)
        return in_world_axes(cloud, mirrored=self.mirrored, lift=self.lift, size=self.size)

    def gaussians(self, key: jax.Array) -> Gaussians:
        """Splats at the points."""
        cloud_key, growth_key = jax.random.split(key)
        return self.splats(self.cloud(cloud_key), f"Point-E's cloud of {self.prompt!r}", rng_of(growth_key))
