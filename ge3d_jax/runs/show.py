"""Rendering of any splat file: a turntable or camera path as a video, a view sheet, an interactive page."""

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import jax
import numpy as np
from PIL import ImageColor
from rich.progress import track

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.camera_paths import read_camera_path
from ge3d_jax.formats.splats import check_splat_path, read_splats
from ge3d_jax.formats.video import GifPages, palette_indices, save_mp4
from ge3d_jax.runs.folder import check_file_name, named_folder, prepare_folder, slug
from ge3d_jax.splatting.techniques import AUTO, check_device, check_rasterizer
from ge3d_jax.viewer.framing import (
    check_up,
    find_frame,
    fitting_distance,
    framed,
    framed_cameras,
    orbit_cameras,
)
from ge3d_jax.viewer.page import save_viewer
from ge3d_jax.viewer.sheet import image_grid, save_png
from ge3d_jax.viewer.turntable import Viewpoint, render_each, turntable_azimuths

_SUFFIXES = (".mp4", ".gif", ".png", ".html")
_FOLDER_FILES = ("turntable.mp4", "turntable.gif", "views.png", "viewer.html")
_SMALLEST_SIDE, _LARGEST_SIDE = 16, 4096
_SHEET_COLUMNS = 4
# Maximum number of pixels in all frames of a .gif, which stay in memory until it is written: two bytes each.
_LARGEST_GIF = 2**31


def parse_size(text: str) -> tuple[int, int]:
    """Parse text like "512" or "640x360" to (width, height) in pixels.

    Raises:
        UserError: the text is malformed, or a side is out of range.
    """
    found = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text.strip().lower())
    size = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not all(_SMALLEST_SIDE <= side <= _LARGEST_SIDE for side in size):
        raise UserError(
            f"The size is {text!r}; give {_SMALLEST_SIDE} to {_LARGEST_SIDE} pixels, e.g. 512 or 640x360."
        )
    return size


def parse_color(text: str) -> tuple[float, float, float]:
    """Parse a color name or #rrggbb to RGB in [0, 1].

    Raises:
        UserError: the text is not a color.
    """
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise UserError(f"The background is {text!r}; give a color, e.g. white or #8090a0.") from error
    return red / 255.0, green / 255.0, blue / 255.0


def _targets(splats: Path, out: str | os.PathLike[str] | None) -> list[Path]:
    """The files to write: a single named file, or all of them in a folder."""
    # Runs give their objects the same file name, but use different folders.
    name = slug(f"{splats.parent.name}-{splats.stem}")
    path = named_folder(out if out is not None else Path("outputs") / (name or "splats"))
    if path.suffix.lower() in _SUFFIXES:
        check_file_name(path)
        prepare_folder(path.parent)
        return [path]
    if path.suffix and not path.is_dir():
        raise UserError(
            f"{path} has an unknown suffix; give a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file, "
            "or a folder."
        )
    return [prepare_folder(path) / name for name in _FOLDER_FILES]


def render_splats(
    splats: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    camera_path: str | os.PathLike[str] | None = None,
    frames: int = 64,
    views: int = 8,
    fps: int = 20,
    size: tuple[int, int] = (512, 512),
    azimuth_degrees: float | None = None,
    elevation_degrees: float = 20.0,
    radius: float | None = None,
    fov_degrees: float = 30.0,
    up: str = "z",
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    antialiased: bool | None = None,
    rasterizer: str = AUTO,
    progress: bool = True,
) -> list[Path]:
    """Render a splat file from all around, or along a camera path.

    Args:
        splats: a splat file in any supported format.
        out: a file: .mp4 or .gif for the turntable or the path; .png for a view sheet, or a single image if
            `azimuth_degrees` is given; .html for an interactive page. Or a folder for one of each. None means
            outputs/<folder of the splats>-<name of the splats>.
        camera_path: a JSON file of cameras instead of a turntable, see `ge3d_jax.formats.camera_paths`.
        frames: number of frames of the turntable; a path has one frame per camera.
        views: number of images on the sheet, evenly spaced along the turntable or the path.
        fps: frames per second.
        size: (width, height) in pixels.
        azimuth_degrees: start of the turntable, counterclockwise as seen from above; 0 looks from +x, and 90
            from +y, -z, or +z if `up` is "z", "y", or "-y".
        elevation_degrees: elevation of the turntable's cameras above the horizon.
        radius: distance of the turntable's cameras from the center of the splats, in the file's units; None
            means the closest distance that shows nearly all of them.
        fov_degrees: full vertical field of view of the turntable's cameras.
        up: the up direction of the file: "z" as here, "y", or "-y" as in most captures.
        background: RGB in [0, 1]; the page has its own.
        antialiased: whether to weaken splats thinner than a pixel, for splats trained with antialiasing
            (Mip-Splatting). None follows the file.
        rasterizer: one of `techniques.RASTERIZERS`; the page has its own.
        progress: whether to show a progress bar.

    Returns:
        The written files.

    Raises:
        UserError: an input is invalid; nothing has been written.
    """
    path = Path(splats)
    check_splat_path(path)
    check_rasterizer(rasterizer)
    check_device(rasterizer)
    for name, value, least, most in (
        ("number of frames", frames, 1, 10_000),
        ("number of views", views, 1, 100),
        ("number of frames per second", fps, 1, 60),
        ("elevation", elevation_degrees, -90.0, 90.0),
        ("field of view", fov_degrees, 1.0, 150.0),
    ):
        if not least <= value <= most:
            raise UserError(f"The {name} is {value}; give one from {least:g} to {most:g}.")
    if radius is not None and not (math.isfinite(radius) and radius > 0):
        raise UserError(f"The radius is {radius}; give a distance above 0.")
    if azimuth_degrees is not None and not math.isfinite(azimuth_degrees):
        raise UserError(f"The azimuth is {azimuth_degrees}; give a finite number of degrees.")
    check_up(up)
    cameras = read_camera_path(camera_path, size=size) if camera_path is not None else None
    file = read_splats(path)
    weakened = file.antialiased if antialiased is None else antialiased
    targets = _targets(path, out)

    frame = find_frame(file.gaussians)
    gaussians = framed(file.gaussians, frame)
    fov, polar = math.radians(fov_degrees), math.radians(90.0 - elevation_degrees)
    distance = radius / frame.radius if radius is not None else fitting_distance(fov, size)
    is_still = azimuth_degrees is not None and camera_path is None
    suffixes = {target.suffix.lower() for target in targets}
    if cameras is not None:
        cameras = framed_cameras(cameras, frame)
        count = len(cameras.intrinsics)
        labels = [f"frame {index}" for index in range(count)]
    else:
        count = frames if suffixes & {".mp4", ".gif"} else 1 if is_still else views
        azimuths = turntable_azimuths(count) + math.radians(azimuth_degrees or 0.0)
        labels = [f"{degrees % 360:.0f}°" for degrees in np.round(np.rad2deg(azimuths))]
        cameras = orbit_cameras(azimuths, polar=polar, distance=distance, fov=fov, size=size, up=up)
    chosen = np.unique(np.arange(min(views, count)) * count // min(views, count))
    if suffixes == {".png"}:
        # Render only the frames on the sheet.
        cameras = jax.tree.map(itemgetter(chosen), cameras)
        labels = [labels[index] for index in chosen]
        chosen = np.arange(len(chosen))

    total = len(cameras.intrinsics)
    if ".gif" in suffixes and total * math.prod(size) > _LARGEST_GIF:
        raise UserError(
            f"A .gif of {total} frames of {size[0]} by {size[1]} pixels is too large for memory; give fewer "
            "frames or a smaller size, or write a .mp4."
        )

    def render(indices: np.ndarray, description: str) -> Iterator[np.ndarray]:
        some = jax.tree.map(itemgetter(indices), cameras)
        each = render_each(
            gaussians, some, background=background, antialiased=weakened, rasterizer=rasterizer
        )
        return iter(track(each, description, total=len(indices), transient=True, disable=not progress))

    names = None if is_still else [labels[index] for index in chosen]
    _write_pictures(targets, render, total=total, chosen=chosen, names=names, fps=fps)
    for target in targets:
        if target.suffix.lower() == ".html":
            viewpoint = Viewpoint(radius=distance, polar=polar, fov=fov)
            save_viewer(target, gaussians, title=path.stem, viewpoint=viewpoint, up=up, antialiased=weakened)
    return targets


def _write_pictures(
    targets: Sequence[Path],
    render: Callable[[np.ndarray, str], Iterator[np.ndarray]],
    *,
    total: int,
    chosen: np.ndarray,
    names: Sequence[str] | None,
    fps: int,
) -> None:
    """Write the targets that are images or videos, all from one rendering of `total` frames.

    A .mp4 is written frame by frame; only the sheet's frames are kept, and the .gif's at one byte per pixel.

    Args:
        targets: files to write.
        render: maps frame indices and a description for the progress bar to the frames.
        total: number of frames.
        chosen: indices of the sheet's frames.
        names: labels of the sheet's frames; None if the sheet is a single image.
        fps: frames per second.
    """
    files = {target.suffix.lower(): target for target in targets}
    if not files.keys() & {".mp4", ".gif", ".png"}:
        return
    pages = None
    if ".gif" in files:
        pages = GifPages(list(render(palette_indices(total), "Choosing colors")))
    sheet: list[np.ndarray] = []

    def frames() -> Iterator[np.ndarray]:
        for index, image in enumerate(render(np.arange(total), "Rendering")):
            if pages is not None:
                pages.add(image)
            if ".png" in files and index in chosen:
                sheet.append(image)
            yield image

    if ".mp4" in files:
        save_mp4(files[".mp4"], frames(), fps=fps)
    else:
        for _ in frames():
            pass
    if pages is not None:
        pages.save(files[".gif"], fps)
    if ".png" in files:
        image = sheet[0] if names is None else image_grid(sheet, names, columns=_SHEET_COLUMNS)
        save_png(files[".png"], image)
