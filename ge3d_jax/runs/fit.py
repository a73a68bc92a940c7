"""From posed pictures to splats on disk, in one call: what `experiments/fit_images.py` and a notebook use."""

import dataclasses
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.devices import batch_mesh, replicated
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.formats.posed_images import PosedImages, read_posed_images, scene_radius
from ge3d_jax.metrics.pictures import psnr, ssim
from ge3d_jax.runs.folder import MetricsFile, prepare_folder, slug, versions, write_json
from ge3d_jax.runs.progress import RunProgress, gentle_interrupt
from ge3d_jax.runs.request import check_seed
from ge3d_jax.runs.results import remove_object, write_object
from ge3d_jax.runs.resume import check_same_run, forget_run, resume_run, save_run
from ge3d_jax.scenes.density_control import first_capacity
from ge3d_jax.scenes.start.ball import ball
from ge3d_jax.splatting.gaussians import Gaussians, padded
from ge3d_jax.splatting.rasterize import grow_to_fit
from ge3d_jax.training.fit_config import FitConfig, settings_in_use
from ge3d_jax.training.iterations import iterate
from ge3d_jax.training.photometric import (
    FitMetrics,
    Views,
    make_fit_step,
    over_background,
    render_view,
    views_of,
)
from ge3d_jax.training.state import TrainState, initial_state
from ge3d_jax.viewer.sheet import image_grid, save_png, to_uint8
from ge3d_jax.viewer.turntable import Viewpoint

# Held-out pictures shown beside their renders.
_COMPARED = 4
_COMPARISON = "comparison.png"


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A finished fit.

    Attributes:
        gaussians: the splats, world units.
        folder: where everything was written.
        iterations: how many were done; fewer than asked for when `interrupted`.
        interrupted: whether Ctrl-C ended the run.
        psnr: decibels, ssim: mean over the held-out pictures.
        metrics: the numbers of every iteration, as in metrics.jsonl.
    """

    gaussians: Gaussians
    folder: Path
    iterations: int
    interrupted: bool
    psnr: float
    ssim: float
    metrics: list[dict[str, float | int]]


def begin_fit(config: FitConfig, key: jax.Array) -> TrainState:
    """The state before the first iteration: a ball of grey splats; lengths in scene radii."""
    start_key, run_key = jax.random.split(key)
    start = config.start
    gaussians = ball(
        start_key,
        count=start.count,
        radius=start.radius,
        opacity=start.opacity,
        scale=start.scale,
        gray=start.gray,
        sh_degree=start.sh_degree,
    )
    capacity = first_capacity(start.count, config.splat_capacity)
    return initial_state(config.optimizer, padded(gaussians, capacity), run_key)


def in_world_units(gaussians: Gaussians, unit: float) -> Gaussians:
    """Splats whose lengths are multiples of `unit` world units."""
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
    rendered = render_view(
        gaussians,
        views.world_to_camera[index],
        views.intrinsics,
        background,
        size=size,
        buffer_capacity=buffer_capacity,
    )
    image = jnp.clip(rendered.rgb, 0.0, 1.0)
    target = over_background(views.pixels[index], background)
    return (image, psnr(image, target), ssim(image, target)), rendered.intersections


def evaluate(
    gaussians: Gaussians, views: Views, *, background: tuple[float, float, float], buffer_capacity: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render every view; (images float32 (V, H, W, 3), PSNR (V,) in decibels, SSIM (V,)).

    gaussians, views: lengths in one unit.
    buffer_capacity: where the intersection buffer starts.
    """
    height, width = views.pixels.shape[1:3]
    behind = jnp.asarray(background, jnp.float32)
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
    """Where to look from: the middle of the cameras."""
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
    """Some held-out pictures over their renders, evenly chosen, as one uint8 image."""
    chosen = np.unique(np.linspace(0, len(images) - 1, _COMPARED).round().astype(int))
    rows = [to_uint8(truths[index]) for index in chosen] + [to_uint8(images[index]) for index in chosen]
    labels = [Path(names[index]).stem for index in chosen] + [f"{psnrs[index]:.1f} dB" for index in chosen]
    return image_grid(rows, labels, columns=len(chosen))


def fit_images(
    images: str | os.PathLike[str],
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    downscale: int = 1,
    overrides: Mapping[str, Any] | None = None,
    checkpoint_every: int = 500,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Fit splats to posed pictures and write them, with pictures of them, to a folder.

    Args:
        images: folder in the layout of NeRF's synthetic scenes, see `posed_images`.
        seed: same seed on the same machine, same splats.
        out: folder; None is outputs/fit-<name of the images' folder>. Results of an earlier run in it are
            replaced.
        downscale: each pixel becomes the mean of so many by so many.
        overrides: settings of `FitConfig` to change, by dotted name: {"density.kind": "mcmc"}.
        checkpoint_every: iterations between saved states, which an interrupted run goes on from; 0 for none.
        resume: go on with the interrupted run in the folder, which was asked for the same.
        progress: whether to show a bar.

    Returns:
        FitResult. Ctrl-C ends the run after the iteration at hand; the result is the object as it stands, and
        `resume` goes on from there.

    Raises:
        UserError: an input that cannot be used; results of an earlier run are untouched then.
    """
    check_seed(seed)
    config = with_overrides(FitConfig(), overrides or {})
    train, test = read_posed_images(images, downscale=downscale)
    if train.is_opaque:
        # There is nothing behind opaque pictures: another background would only ask for walls.
        config = dataclasses.replace(config, background=dataclasses.replace(config.background, replaced=0.0))
    unit = scene_radius(train)
    name = slug(Path(images).resolve().name) or "images"
    folder = prepare_folder(out if out is not None else Path("outputs") / f"fit-{name}")
    description = {
        "images": str(images),
        "downscale": downscale,
        "seed": seed,
        "settings": settings_in_use(config),
        "versions": versions(),
    }
    history: list[dict[str, float | int]] = []
    state = begin_fit(config, jax.random.key(seed))
    if resume:
        check_same_run(folder, description)
        state, history = resume_run(folder, state)
    else:
        remove_object(folder)
        (folder / _COMPARISON).unlink(missing_ok=True)
        forget_run(folder)
    write_json(folder / "config.json", description)

    mesh = batch_mesh(config.views)
    state, views = jax.device_put((state, views_of(train, unit)), replicated(mesh))
    begun = time.monotonic() - (history[-1]["seconds"] if history else 0.0)
    with (
        RunProgress(config.iterations, enabled=progress, doing="fitting") as bar,
        gentle_interrupt(bar) as stop,
        MetricsFile(folder / "metrics.jsonl", earlier=history) as metrics_file,
    ):

        def on_progress(done: int, metrics: FitMetrics, state: TrainState) -> bool:
            numbers: dict[str, float | int] = {"iteration": done}
            numbers |= {name: value.item() for name, value in vars(metrics).items()}
            numbers["seconds"] = round(time.monotonic() - begun, 3)
            metrics_file.write(numbers)
            history.append(numbers)
            bar.update(done, float(numbers["loss"]), int(numbers["splats"]))
            if checkpoint_every and done % checkpoint_every == 0 and done < config.iterations:
                save_run(folder, state)
            return stop.requested

        result = iterate(
            state,
            lambda buffer_capacity: make_fit_step(config, views, buffer_capacity, mesh),
            iterations=config.iterations,
            buffer_capacity=config.buffer_capacity,
            splat_capacity=config.splat_capacity,
            density=config.density,
            on_progress=on_progress,
        )
    if result.interrupted:
        save_run(folder, result.state)
    else:
        forget_run(folder)

    held_out, background = views_of(test, unit), config.background.color
    renders, psnrs, ssims = evaluate(
        result.gaussians, held_out, background=background, buffer_capacity=result.buffer_capacity
    )
    truths = np.asarray(over_background(held_out.pixels, jnp.asarray(background, jnp.float32)))
    save_png(folder / _COMPARISON, _comparison(truths, renders, psnrs, test.names))
    gaussians = in_world_units(result.gaussians, unit)
    write_object(folder, gaussians, title=name, viewpoint=_viewpoint(train))
    measured = {"psnr": float(psnrs.mean()), "ssim": float(ssims.mean())}
    write_json(
        folder / "held_out.json",
        {
            "iterations": result.iterations,
            **measured,
            "pictures": {
                name: {"psnr": one, "ssim": other}
                for name, one, other in zip(test.names, psnrs.tolist(), ssims.tolist(), strict=True)
            },
        },
    )
    return FitResult(
        gaussians=gaussians,
        folder=folder,
        iterations=result.iterations,
        interrupted=result.interrupted,
        metrics=history,
        **measured,
    )
