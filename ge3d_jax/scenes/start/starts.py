"""The registry of starts, by the names that `--start=` takes.

Starts that are files also have names, for config.json, but are specified by their paths.
"""

from ge3d_jax.scenes.start.ball import Ball, Box
from ge3d_jax.scenes.start.base import Start
from ge3d_jax.scenes.start.files import CloudFile, MeshFile, SplatFile
from ge3d_jax.scenes.start.point_e.start import PointEStart

STARTS: dict[str, type[Start]] = {
    "ball": Ball,
    "box": Box,
    "point_e": PointEStart,
    "splats": SplatFile,
    "cloud": CloudFile,
    "mesh": MeshFile,
}


def is_named(start: str | None) -> bool:
    """Whether a start is asked for by its name in STARTS, not by the path of a file."""
    return start in STARTS and not STARTS[start].reads_file
