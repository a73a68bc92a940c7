"""Starts read from files: splats, a colored point cloud, or a mesh; and how to tell which one a file is."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import choice
from ge3d_jax.formats.glb import holds_splats
from ge3d_jax.formats.mesh_points import MESH_SUFFIXES, read_mesh, sample_mesh
from ge3d_jax.formats.ply import read_elements
from ge3d_jax.formats.point_clouds import PointCloud, read_cloud
from ge3d_jax.formats.splats import FORMATS, load_splats
from ge3d_jax.scenes.start.clouds import GROWTHS, AsItIs, CloudStart, Growth
from ge3d_jax.splatting.gaussians import Gaussians

CLOUD_SUFFIXES = (".ply", ".xyz")
# Largest and smallest expected extent; cameras look at the origin from a distance of about four.
_FAR, _SMALL = 2.0, 0.1


@dataclasses.dataclass(frozen=True)
class SplatFile:
    """Splats from a file in any readable format.

    Attributes:
        file: path of the file.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    reads_file: ClassVar[bool] = True
    is_learned: ClassVar[bool] = True

    file: str = ""

    @property
    def count(self) -> int:
        """0: known only from the file."""
        return 0

    @property
    def sh_degree(self) -> int:
        """0: known only from the file."""
        return 0

    def check(self) -> None:
        """Do nothing: the file is read before a run begins."""

    def words_of(self, prompt: str) -> tuple[str, Path] | None:
        """Return None: there is no start model."""
        return None

    def asked_for(self, prompt: str) -> "SplatFile":
        """Return the same start for all prompts."""
        return self

    def gaussians(self, key: jax.Array) -> Gaussians:
        """Load the splats from the file."""
        return load_splats(self.file)


def placed(cloud: PointCloud, radius: float | None, source: str) -> PointCloud:
    """Move and scale the cloud to fit a ball around the origin; with radius None, leave it as it is.

    Warns:
        UserWarning: it is left where the cameras do not see it well.
    """
    if radius is None:
        reach = float(np.linalg.norm(cloud.positions, axis=1).max())
        if not _SMALL <= reach <= _FAR:
            warnings.warn(
                f"{source} reaches {reach:.3g} from the origin, where objects reach about 0.5 to 1; "
                "--set=start.radius=0.7 moves and scales it.",
                stacklevel=2,
            )
        return cloud
    middle = (cloud.positions.min(axis=0) + cloud.positions.max(axis=0)) / 2
    centered = cloud.positions - middle
    # Points that all coincide are rejected later.
    reach = max(float(np.linalg.norm(centered, axis=1).max()), float(np.finfo(np.float32).tiny))
    return PointCloud((centered * (radius / reach)).astype(np.float32), cloud.colors)


def _check_radius(radius: float | None) -> None:
    if radius is not None and radius <= 0:
        raise UserError(f"The setting start.radius is {radius}; give a number above 0, or null.")


@dataclasses.dataclass(frozen=True)
class CloudFile(CloudStart):
    """The points of a .ply or .xyz file, with z up and the front toward +x.

    Attributes:
        file: path of the file.
        radius: radius of the ball around the origin that the points are fitted to; None leaves them as they
            are.
    """

    reads_file: ClassVar[bool] = True

    colored: bool = True
    file: str = ""
    radius: float | None = None

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        _check_radius(self.radius)

    def check(self) -> None:
        """Do nothing: the file is read before a run begins."""

    def gaussians(self, key: jax.Array) -> Gaussians:
        """Create splats at the points, the same for every key."""
        cloud = placed(read_cloud(self.file), self.radius, self.file)
        return self.splats(cloud, self.file, np.random.default_rng(0))


@dataclasses.dataclass(frozen=True)
class MeshFile(CloudStart):
    """Points sampled on the surface of a mesh, with its colors or its texture.

    Attributes:
        file: path of the file.
        points: number of points.
        radius: radius of the ball around the origin that the points are fitted to; None leaves them as they
            are.
        y_up: whether y is up and the front is toward +z in the file; None for the format's convention.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toybox": {"points": 1600, "scale": 0.042, "opacity": 0.27}
    }
    reads_file: ClassVar[bool] = True

    growth: Growth = choice(lambda: GROWTHS, AsItIs())
    colored: bool = True
    file: str = ""
    points: int = 80_000
    radius: float | None = None
    y_up: bool | None = None

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        _check_radius(self.radius)
        if self.points < 1:
            raise UserError(f"The setting start.points is {self.points}; give at least 1.")

    def check(self) -> None:
        """Do nothing: the file is read before a run begins."""

    def gaussians(self, key: jax.Array) -> Gaussians:
        """Create splats on the surface, the same for every key."""
        cloud = sample_mesh(read_mesh(self.file), self.points, np.random.default_rng(0), y_up=self.y_up)
        return self.splats(placed(cloud, self.radius, self.file), self.file, np.random.default_rng(1))


def kind_of_file(path: str | os.PathLike[str]) -> str:
    """Determine which kind of start a file is: "splats", "cloud" or "mesh".

    A .ply file can be any of them, and a .glb file splats or a mesh; for these, the contents are inspected.

    Raises:
        UserError: the file is missing, damaged, or in a format that cannot be read.
    """
    file = Path(path)
    name = file.name.lower()
    if not file.is_file():
        raise UserError(
            f"There is no file {os.fspath(path)} to start from; give ball, box, point_e, or the path of "
            "splats, a point cloud, or a mesh."
        )
    if name.endswith(".ply"):
        return _kind_of_ply(file)
    if name.endswith(".glb"):
        return "splats" if holds_splats(file) else "mesh"
    if name.endswith(CLOUD_SUFFIXES[1]):
        return "cloud"
    if name.endswith(MESH_SUFFIXES):
        return "mesh"
    if any(name.endswith(ending) for ending in FORMATS):
        return "splats"
    known = dict.fromkeys([*(ending for ending in FORMATS), *CLOUD_SUFFIXES, *MESH_SUFFIXES])
    raise UserError(f"{os.fspath(path)} is not in a supported format; give one of {', '.join(known)}.")


def _kind_of_ply(file: Path) -> str:
    elements = {element.name: element for element in read_elements(file)}
    vertex = elements.get("vertex")
    names = [name.lower() for name in vertex.types] if vertex is not None else []
    if any(name.endswith("opacity") or name.startswith("packed_") for name in names):
        return "splats"
    # Some writers of point clouds declare faces of which there are none.
    surfaces = [elements[name].count for name in ("face", "faces", "tristrips") if name in elements]
    return "mesh" if any(surfaces) else "cloud"
