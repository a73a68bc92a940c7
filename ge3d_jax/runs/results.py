"""The object in a run's folder: the splats, and images, videos, and a web page that show them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ge3d_jax.core.files import remove_files
from ge3d_jax.formats.ply import save_ply
from ge3d_jax.formats.video import save_gif, save_mp4
from ge3d_jax.mesh.build import USUAL, mesh_of
from ge3d_jax.mesh.files import save_mesh
from ge3d_jax.runs.attempts import Attempts
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.viewer.page import save_viewer
from ge3d_jax.viewer.sheet import SMALLEST_FRAME, enlarge, save_png
from ge3d_jax.viewer.turntable import Viewpoint, render_around, turntable_azimuths, view_sheet

_TURNTABLE_FRAMES = 64
_TURNTABLE_FPS = 20
# The sheet shows every eighth frame of the turntable: eight views.
_SHEET_STRIDE = 8
_MESH = USUAL


def remove_object(folder: Path) -> None:
    """Remove the results of an earlier run in the same folder, so that they are not mistaken for new ones."""
    names = ("object.ply", "mesh.glb", "turntable.mp4", "turntable.gif", "views.png", "viewer.html")
    remove_files(folder / name for name in names)


def write_object(
    folder: Path,
    gaussians: Gaussians,
    *,
    title: str,
    viewpoint: Viewpoint,
    attempts: Attempts,
    numbers: Mapping[str, str | int | float],
    mesh: bool = False,
) -> np.ndarray:
    """Write the splats, the page, the view sheet, the turntables, and, if requested, a mesh.

    Args:
        folder: the run's folder.
        gaussians: the splats.
        title: title of the page.
        viewpoint: the cameras of the page, sheet, and turntables.
        attempts: records failures to write anything but the splats.
        numbers: facts about the object to show on the page, name → value.
        mesh: whether to also write mesh.glb; its packages must be installed.

    Returns:
        The turntable's frames, uint8 (T, H, W, 3).

    Raises:
        OSError: the splats cannot be written.
    """
    save_ply(folder / "object.ply", gaussians)
    with attempts.at("viewer.html"):
        save_viewer(folder / "viewer.html", gaussians, title=title, viewpoint=viewpoint, numbers=numbers)
    azimuths = turntable_azimuths(_TURNTABLE_FRAMES)
    frames = render_around(gaussians, azimuths, viewpoint=viewpoint)
    with attempts.at("views.png"):
        save_png(folder / "views.png", view_sheet(frames[::_SHEET_STRIDE], azimuths[::_SHEET_STRIDE]))
    enlarged = [enlarge(frame, minimum=SMALLEST_FRAME) for frame in frames]
    with attempts.at("turntable.gif"):
        save_gif(folder / "turntable.gif", enlarged, fps=_TURNTABLE_FPS)
    with attempts.at("turntable.mp4"):
        save_mp4(folder / "turntable.mp4", enlarged, fps=_TURNTABLE_FPS)
    if mesh:
        write_mesh(folder, gaussians, attempts=attempts)
    return frames


def write_mesh(folder: Path, gaussians: Gaussians, *, attempts: Attempts) -> None:
    """Try to write a mesh of the splats to mesh.glb in the run's folder; its packages must be installed."""
    with attempts.at("mesh.glb"):
        save_mesh(folder / "mesh.glb", mesh_of(gaussians, _MESH))
