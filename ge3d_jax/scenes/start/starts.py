"""What a run can begin with, by the name that --start= takes.

A start that is a file has a name too, for config.json; given is its path.
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
