"""Text-to-point-cloud with Point-E: the cloud on disk, with a view sheet and a web page."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.files import locked
from ge3d_jax.core.settings import to_tree
from ge3d_jax.formats.point_clouds import PointCloud, save_cloud
from ge3d_jax.runs.folder import prepare_folder, slug, versions, write_json
from ge3d_jax.runs.request import check_prompt, check_seed
from ge3d_jax.scenes.start.clouds import AsItIs
from ge3d_jax.scenes.start.point_e.start import BUNDLED, BUNDLED_SIZE, PointEStart
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.viewer.page import save_viewer
from ge3d_jax.viewer.sheet import save_png
from ge3d_jax.viewer.turntable import Viewpoint, render_around, turntable_azimuths, view_sheet

_VIEWS = 8
_VIEWPOINT = Viewpoint()
# Points are shown as small, nearly opaque balls.
_SHOWN_SCALE, _SHOWN_OPACITY = 0.012, 0.95
# This many points show a dense surface; with fewer points the balls are larger.
_MANY_POINTS = 4096


def point_cloud(
    prompt: str,
    *,
    seed: int = 0,
    model: str | os.PathLike[str] | None = None,
    clip: str | None = None,
    mirrored: bool = False,
    out: str | os.PathLike[str] | None = None,
) -> tuple[PointCloud, Path]:
    """Generate a point cloud from a prompt and write it, along with images of it, to a folder.

    Args:
        prompt: what to generate.
        seed: random seed; on the same machine, the same seed gives the same cloud.
        model: a folder with the published Point-E, see `scenes.start.point_e.files`; None means the bundled
            model.
        clip: the matching text encoder, a folder or hub id; None means the published one.
        mirrored: whether to swap left and right, as in the paper's public code.
        out: output folder; None means outputs/cloud-<prompt>-<seed>.

    Returns:
        The cloud, z up and facing +x, and the folder with cloud.ply, views.png, viewer.html, and config.json.

    Raises:
        UserError: an input is invalid.
    """
    keep_compiled_code()
    check_seed(seed)
    start = PointEStart(
        prompt=prompt,
        model=BUNDLED if model is None else os.fspath(model),
        mirrored=mirrored,
        lift=0.0,
        size=BUNDLED_SIZE if model is None else 1.0,
        growth=AsItIs(),
        colored=True,
        opacity=_SHOWN_OPACITY,
    )
    if clip is not None:
        start = dataclasses.replace(start, clip=clip)
    start.check()
    words = start.words_of(prompt)
    assert words is not None
    check_prompt(*words)
    path = Path(out) if out is not None else Path("outputs") / f"cloud-{slug(prompt)}-{seed}"
    folder = prepare_folder(path)
    with locked(folder):
        cloud = start.cloud(jax.random.key(seed))
        save_cloud(folder / "cloud.ply", cloud)
        _write_views(folder, _shown(start, cloud), prompt, {"seed": seed, "points": len(cloud.positions)})
        told = {"prompt": prompt, "seed": seed, "start": to_tree(start), "versions": versions()}
        write_json(folder / "config.json", told)
    return cloud, folder


def _shown(start: PointEStart, cloud: PointCloud) -> Gaussians:
    """Represent the points as balls, for display."""
    scale = _SHOWN_SCALE * (_MANY_POINTS / len(cloud.positions)) ** 0.5
    shown = dataclasses.replace(start, scale=scale)
    return shown.splats(cloud, "Point-E's cloud", np.random.default_rng(0))


def _write_views(folder: Path, splats: Gaussians, title: str, numbers: dict[str, str | int | float]) -> None:
    azimuths = turntable_azimuths(_VIEWS)
    pictures = render_around(splats, azimuths, viewpoint=_VIEWPOINT)
    save_png(folder / "views.png", view_sheet(pictures, azimuths))
    save_viewer(folder / "viewer.html", splats, title=title, viewpoint=_VIEWPOINT, numbers=numbers)
