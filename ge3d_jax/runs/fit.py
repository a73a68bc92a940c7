"""Fits splats to posed images in one call, with results on disk; used by `ge3d fit` and in notebooks."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.files import locked, remove_files
from ge3d_jax.core.settings import to_tree, with_overrides
from ge3d_jax.formats.posed_images import PosedImages, read_posed_images, scene_radius
from ge3d_jax.mesh.packages import check_packages
from ge3d_jax.metrics.pictures import psnr, ssim
from ge3d_jax.runs.attempts import Attempts
from ge3d_jax.runs.folder import prepare_folder, slug, versions, write_json
from ge3d_jax.runs.observers import SAVE_SECONDS, Observer
from ge3d_jax.runs.progress import told
from ge3d_jax.runs.request import check_seed
from ge3d_jax.runs.results import remove_object, write_object
from ge3d_jax.runs.resume import check_same_run, resume_run
from ge3d_jax.runs.run import Part, Run
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.rasterize import FIRST_CAPACITY, grow_to_fit, render
from ge3d_jax.training.fit_config import FitConfig
from ge3d_jax.training.iterations import HostNumbers, RunResult
from ge3d_jax.training.photometric import Photometric, Views, begin_fit, over_background, views_of
from ge3d_jax.training.presets import with_density
from ge3d_jax.viewer.sheet import image_grid, save_png, to_uint8
from ge3d_jax.viewer.turntable import Viewpoint

# Number of held-out images to show next to their renders.
_COMPARED = 4
_COMPARISON = "comparison.png"
_HELD_OUT = "held_out.json"
# The name under which a density strategy keeps its settings for fits.
_PRESET = "fit"


@dataclasses.dataclass(frozen=True)
class FitResult:
    """The result of a finished fit.

    Attributes:
        gaussians: the splats, world units.
        folder: where everything was written.
        iterations: number of completed iterations; fewer than requested if `interrupted`.
        interrupted: whether Ctrl-C ended the run.
        diverged: whether the run was stopped because its gradients were not finite; the splats are then the
            last good ones.
        advice: sentences on why the run ended early and which settings would work better; usually empty.
        unwritten: sentences on what could not be written, e.g. because the disk was full; usually empty.
        psnr: decibels, ssim: means over the held-out images.
        metrics: the numbers of every iteration, as in metrics.jsonl.
    """

    gaussians: Gaussians
    folder: Path
    iterations: int
    interrupted: bool
    diverged: bool
    advice: list[str]
    unwritten: list[str]
    psnr: float
    ssim: float
    metrics: list[dict[str, float | int]]


def in_world_units(gaussians: Gaussians, unit: float) -> Gaussians:
    """Convert splats whose lengths are in multiples of `unit` to world units."""
    return dataclasses.replace(
        gaussians, positions=gaussians.positions * unit, log_scales=gaussians.log_scales + np.log(unit)
    )


@partial(jax.jit, static_argnames=("size", "buffer_capacity"))
def _compare(
    gaussians: Gaussians,
    views: Views,
    index: jax.Array,
    background: jax.Array,
    buffer_capacity: int,
    *,
    size: tuple[int, int],
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
    camera = Camera(views.world_to_camera[index], views.intrinsics, width=size[0], height=size[1])
    rendered = render(gaussians, camera, background=background, buffer_capacity=buffer_capacity)
    image = jnp.clip(rendered.rgb, 0.0, 1.0)
    target = over_background(views.pixels[index], background)
    return (image, psnr(image, target), ssim(image, target)), rendered.intersections


def evaluate(
    gaussians: Gaussians, views: Views, *, background: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render every view and compare it with its image.

    Args:
        gaussians: the splats, in the same unit of length as `views`.
        views: the posed images.
        background: RGB in [0, 1].

    Returns:
        Images, float32 (V, H, W, 3); PSNR (V,), decibels; SSIM (V,).
    """
    height, width = views.pixels.shape[1:3]
    behind = jnp.asarray(background, jnp.float32)
    buffer_capacity = FIRST_CAPACITY
    images, psnrs, ssims = [], [], []
    for index in range(views.pixels.shape[0]):
        compare = partial(_compare, gaussians, views, jnp.int32(index), behind, size=(width, height))
        (image, decibels, similarity), buffer_capacity = grow_to_fit(
            compare, buffer_capacity, width=width, height=height
        )
        images.append(np.asarray(image))
        psnrs.append(float(decibels))
        ssims.append(float(similarity))
    return np.stack(images), np.array(psnrs), np.array(ssims)


def _viewpoint(images: PosedImages) -> Viewpoint:
    """The viewpoint for results: the median of the cameras."""
    centers = images.centers
    distances = np.linalg.norm(centers, axis=1)
    height = images.size[1]
    return Viewpoint(
        radius=float(np.median(distances)),
        polar=float(np.median(np.arccos(centers[:, 2] / distances))),
        fov=float(2.0 * np.arctan(0.5 * height / images.intrinsics[1])),
    )


def _comparison(
    truths: np.ndarray, images: np.ndarray, psnrs: np.ndarray, names: tuple[str, ...]
) -> np.ndarray:
    """Evenly chosen held-out images above their renders, as one uint8 image."""
    chosen = np.unique(np.linspace(0, len(images) - 1, _COMPARED).round().astype(int))
    rows = [to_uint8(truths[index]) for index in chosen] + [to_uint8(images[index]) for index in chosen]
    labels = [Path(names[index]).stem for index in chosen] + [f"{psnrs[index]:.1f} dB" for index in chosen]
    return image_grid(rows, labels, columns=len(chosen))


@dataclasses.dataclass(frozen=True)
class _Held:
    """The splats in world units, and how well they reproduce the held-out images."""

    gaussians: Gaussians
    psnr: float
    ssim: float


def _remove_old_results(folder: Path) -> None:
    remove_object(folder)
    remove_files([folder / _COMPARISON, folder / _HELD_OUT])


def _write_results(
    folder: Path,
    result: RunResult,
    train: PosedImages,
    test: PosedImages,
    *,
    unit: float,
    title: str,
    config: FitConfig,
    attempts: Attempts,
    mesh: bool,
) -> _Held:
    """Write the splats and images of them, then the evaluation on held-out images."""
    gaussians = in_world_units(result.object, unit)
    write_object(
        folder,
        gaussians,
        title=title,
        viewpoint=_viewpoint(train),
        attempts=attempts,
        numbers={"pictures": len(train.names), "iterations": result.iterations},
        mesh=mesh,
    )
    held_out, background = views_of(test, unit), config.background.color
    renders, psnrs, ssims = evaluate(result.object, held_out, background=background)
    truths = np.asarray(over_background(held_out.pixels, jnp.asarray(background, jnp.float32)))
    with attempts.at(_COMPARISON):
        save_png(folder / _COMPARISON, _comparison(truths, renders, psnrs, test.names))
    held = _Held(gaussians, float(psnrs.mean()), float(ssims.mean()))
    with attempts.at(_HELD_OUT):
        write_json(
            folder / _HELD_OUT,
            {
                "iterations": result.iterations,
                "psnr": held.psnr,
                "ssim": held.ssim,
                "pictures": {
                    name: {"psnr": one, "ssim": other}
                    for name, one, other in zip(test.names, psnrs.tolist(), ssims.tolist(), strict=True)
                },
            },
        )
    return held


def fit_images(
    images: str | os.PathLike[str],
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    downscale: int = 1,
    density: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    save_seconds: float | None = SAVE_SECONDS,
    resume: bool = False,
    progress: bool = True,
    mesh: bool = False,
    observers: Sequence[Observer] = (),
) -> FitResult:
    """Fit splats to posed images and write them, along with renderings, to a folder.

    Args:
        images: folder in the layout of NeRF's synthetic scenes, see `posed_images`.
        seed: random seed; on the same machine, the same seed gives the same splats.
        out: output folder; None means outputs/fit-<name of the images' folder>. Results of an earlier run in
            it are replaced.
        downscale: average blocks of this many by this many pixels.
        density: density control, i.e. how the number of splats changes: "clone_split", "mcmc", "relocate",
            or "replace_unseen"; None means "clone_split".
        overrides: settings of `FitConfig` to change, by dotted name, e.g. {"start.sh_degree": 3}.
        save_seconds: as for `generate`.
        resume: continue the interrupted run in the folder, which must have been started with the same inputs.
        progress: whether to show a progress bar.
        mesh: whether to also write mesh.glb, a textured mesh; see `runs.mesh`.
        observers: callbacks for each iteration; see `runs.observers`.

    Returns:
        The result. Ctrl-C ends the run after the current iteration; the result is then the object as it
        stands, and `resume` continues from there.

    Raises:
        UserError: an input is invalid; results of an earlier run are then left untouched.
    """
    keep_compiled_code()
    check_seed(seed)
    if mesh:
        check_packages()
    usual = FitConfig()
    if density is not None:
        usual = with_density(usual, density, _PRESET, overrides or {})
    config = with_overrides(usual, overrides or {})
    config.scene.check_devices()
    train, test = read_posed_images(images, downscale=downscale)
    if train.is_opaque:
        # Opaque images show no background, so replacing it would only reward walls around the scene.
        config = dataclasses.replace(config, background=dataclasses.replace(config.background, replaced=0.0))
    unit = scene_radius(train)
    name = slug(Path(images).resolve().name) or "images"
    folder = prepare_folder(out if out is not None else Path("outputs") / f"fit-{name}")
    description = {
        "images": str(images),
        "downscale": downscale,
        "seed": seed,
        "settings": to_tree(config),
        "versions": versions(),
    }
    with locked(folder):
        state, is_new = begin_fit(config, jax.random.key(seed)), True
        history: list[HostNumbers] = []
        if resume and check_same_run(folder, description, {"settings": to_tree(usual)}, say=told(progress)):
            state, history = resume_run(folder, state, config.scene, last=config.iterations)
            is_new = False
        run = Run(
            folder=folder,
            description=description,
            task=Photometric(config),
            context=views_of(train, unit),
            parts=config.views,
            history=history,
            is_new=is_new,
        )

        def write(result: RunResult, attempts: Attempts) -> _Held:
            return _write_results(
                folder,
                result,
                train,
                test,
                unit=unit,
                title=name,
                config=config,
                attempts=attempts,
                mesh=mesh,
            )

        part = Part(run, state, observers, _remove_old_results, write)
        outcome = part.perform(doing="fitting", progress=progress, save_seconds=save_seconds)
    return FitResult(
        gaussians=outcome.written.gaussians,
        folder=folder,
        iterations=outcome.result.iterations,
        interrupted=outcome.result.interrupted,
        diverged=outcome.result.diverged,
        advice=outcome.advice,
        unwritten=outcome.unwritten,
        metrics=outcome.history,
        psnr=outcome.written.psnr,
        ssim=outcome.written.ssim,
    )
