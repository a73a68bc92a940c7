"""The start that Point-E makes: from the prompt to splats."""

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
# Its clouds are half as large as the objects of the Toybox world.
BUNDLED_SIZE = 2.0
# What goes with the bundled model, whose world has its objects in the middle, as they are.
_BUNDLED_SETTINGS = {"model": BUNDLED, "mirrored": False, "lift": 0.0, "size": BUNDLED_SIZE, "colored": True}


def in_world_axes(cloud: PointCloud, *, mirrored: bool, lift: float, size: float = 1.0) -> PointCloud:
    """A cloud of Point-E, which faces -y there, in the world's axes, facing +x.

    Args:
        cloud: as Point-E gives it, z up.
        mirrored: left and right exchanged, as in the paper's public code.
        lift: added to the height, after scaling.
        size: world units for each of its own.
    """
    x, y, z = np.float32(size) * cloud.positions.T
    positions = np.stack([-y, -x if mirrored else x, z + np.float32(lift)], axis=-1)
    return PointCloud(positions.astype(np.float32), cloud.colors)


@functools.lru_cache(maxsize=8)
def _sampled(place: Path, clip: str, prompt: str, key: tuple[int, ...]) -> PointCloud:
    """A cloud, kept for runs that are resumed or begun again."""
    model, encode = open_point_e(place, clip)
    return sample_clouds(model, encode([prompt]), jax.random.wrap_key_data(jnp.asarray(key, jnp.uint32)))[0]


@dataclasses.dataclass(frozen=True)
class PointEStart(CloudStart):
    """The points that Point-E makes of the prompt, with the paper's settings.

    Attributes:
        prompt: what to make of it; None for the run's.
        model: a folder with the networks' files, "bundled" for the small one of the Toybox world; None is
            the cache folder's point_e, where the published files go.
        clip: the published networks' text encoder: a folder, or a hub id; the small one brings its own.
        mirrored: left and right exchanged, as in the paper's public code.
        lift: added to the height, world units, as there.
        size: world units for each of Point-E's, whose clouds are about 1 large.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # 1024 points, five times over: nearly as many splats as the preset's ball has, and as large.
        "toybox": {
            **_BUNDLED_SETTINGS,
            "growth.kind": "clones",
            "growth.number": 5,
            "scale": 0.026,
            "opacity": 0.27,
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
        """Find the files. Raises UserError that says where to get them."""
        check_files(model_place(self.model), self.clip)

    def words_of(self, prompt: str) -> tuple[str, Path] | None:
        """The start's own prompt or the run's, and the folder of the networks."""
        return prompt if self.prompt is None else self.prompt, model_place(self.model)

    def asked_for(self, prompt: str) -> "PointEStart":
        """The same for a prompt, where it has none of its own."""
        return self if self.prompt is not None else dataclasses.replace(self, prompt=prompt)

    def cloud(self, key: jax.Array) -> PointCloud:
        """The points, in the world's axes. Raises UserError where there is no prompt."""
        if self.prompt is None:
            raise UserError("Point-E has no prompt; set start.prompt.")
        numbers = tuple(np.asarray(jax.random.key_data(key)).tolist())
        cloud = _sampled(model_place(self.model), self.clip, self.prompt, numbers)
        return in_world_axes(cloud, mirrored=self.mirrored, lift=self.lift, size=self.size)

    def gaussians(self, key: jax.Array) -> Gaussians:
        """Splats at the points."""
        cloud_key, growth_key = jax.random.split(key)
        return self.splats(self.cloud(cloud_key), f"Point-E's cloud of {self.prompt!r}", rng_of(growth_key))
