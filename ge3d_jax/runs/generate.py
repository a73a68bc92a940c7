"""From a sentence to an object on disk, in one call: what `experiments/generate.py` and a notebook use."""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.devices import compute_dtype
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.formats.splats import load_splats
from ge3d_jax.runs.folder import MetricsFile, prepare_folder, slug, versions, write_json
from ge3d_jax.runs.progress import RunProgress, gentle_interrupt
from ge3d_jax.runs.request import (
    check_adapters,
    check_image_size,
    check_picture_size,
    check_prompt,
    check_seed,
    find_model,
)
from ge3d_jax.runs.results import remove_object, write_object
from ge3d_jax.runs.resume import check_same_run, forget_run, resume_run, save_run
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.compilation import Compilation
from ge3d_jax.training.config import Config, with_overrides
from ge3d_jax.training.config import preset as preset_config
from ge3d_jax.training.loop import begin, run
from ge3d_jax.training.state import TrainState
from ge3d_jax.training.step import Metrics
from ge3d_jax.viewer.sheet import save_png
from ge3d_jax.viewer.turntable import Viewpoint, render_around, turntable_azimuths, view_sheet

_PREVIEW_VIEWS = 4
_PREVIEW_SIZE = 128


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run. In a notebook it shows itself as its sheet of views.

    Attributes:
        prompt, seed: what was asked for.
        gaussians: the object.
        folder: where everything was written.
        iterations: how many were done; fewer than asked for when `interrupted`.
        interrupted: whether Ctrl-C ended the run.
        metrics: the numbers of every iteration, as in metrics.jsonl.
        frames: the turntable, uint8 (T, H, W, 3), once around from the front.
    """

    prompt: str
    seed: int
    gaussians: Gaussians
    folder: Path
    iterations: int
    interrupted: bool
    metrics: list[dict[str, float | int]]
    frames: np.ndarray

    def _repr_png_(self) -> bytes:
        return (self.folder / "views.png").read_bytes()


def _viewpoint(config: Config) -> Viewpoint:
    """Where to look from: the middle of the cameras that the run ends with."""
    cameras = config.cameras
    return Viewpoint(
        radius=float(np.mean(cameras.radius_end)),
        polar=float(np.deg2rad(np.mean(cameras.polar_degrees))),
        fov=float(np.mean(cameras.fov_radians_end)),
    )


def _remove_old_results(folder: Path) -> None:
    remove_object(folder)
    for path in folder.glob("previews/iteration_*.png"):
        path.unlink()
    forget_run(folder)


def generate(
    prompt: str,
    *,
    preset: str = "toybox",
    seed: int = 0,
    model: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    preview_every: int = 25,
    checkpoint_every: int = 250,
    resume: bool = False,
    progress: bool = True,
    dtype: str = "auto",
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
    textual_inversions: Sequence[str | os.PathLike[str]] = (),
) -> Result:
    """Make a 3D object from a sentence and write it, with pictures of it, to a folder.

    Args:
        prompt: what to make, as "a red mushroom".
        preset: "toybox" for the bundled model, "paper" for Stable Diffusion.
        seed: same seed on the same machine, same object, byte by byte.
        model: another model than the bundled one: a folder in diffusers' layout, a single .safetensors file,
            or an id of the hub, which is downloaded.
        out: folder; None is outputs/<prompt>-<seed>. Results of an earlier run in it are replaced.
        start: a splat file (.ply, .splat or .spz) to begin with instead of a grey ball.
        overrides: settings to change, by dotted name: {"guidance.scale": 10, "views": 2}.
        preview_every: iterations between pictures in previews/; 0 for none.
        checkpoint_every: iterations between saved states, which an interrupted run goes on from; 0 for none.
        resume: go on with the interrupted run in the folder, which was asked for the same.
        progress: whether to show a bar.
        dtype: what the networks compute in: "float32", "bfloat16", or "auto", bfloat16 where the device is
            made for it.
        loras: LoRA files and strengths to change the model by; 1 is as they were trained.
        textual_inversions: files with the embeddings of new words, for use in the prompt.

    Returns:
        Result. Ctrl-C ends the run after the iteration at hand; the result is the object as it stands, and
        `resume` goes on from there.

    Raises:
        UserError: an input that cannot be used; results of an earlier run are untouched then.
    """
    keep_compiled_code()
    folder_of_model = find_model(model)
    check_prompt(prompt, folder_of_model)
    check_seed(seed)
    config = with_overrides(preset_config(preset), overrides or {})
    check_image_size(config, folder_of_model)
    started = load_splats(start) if start is not None else None
    if started is not None:
        config = dataclasses.replace(config, splat_capacity=max(config.splat_capacity, started.capacity))
    networks_dtype = compute_dtype(dtype)
    check_adapters([*(file for file, _ in loras), *textual_inversions])
    folder = prepare_folder(out if out is not None else Path("outputs") / f"{slug(prompt)}-{seed}")
    description = {
        "prompt": prompt,
        "seed": seed,
        "preset": preset,
        "model": "bundled" if model is None else str(model),
        "start": str(start) if start is not None else None,
        "dtype": networks_dtype.name,
        "loras": [[str(file), strength] for file, strength in loras],
        "textual_inversions": [str(file) for file in textual_inversions],
        "settings": dataclasses.asdict(config),
        "versions": versions(),
    }
    state = begin(config, jax.random.key(seed), start=started)
    history: list[dict[str, float | int]] = []
    if resume:
        check_same_run(folder, description)
        state, history = resume_run(folder, state)
    diffusion = load_model(
        folder_of_model, dtype=networks_dtype, loras=loras, textual_inversions=textual_inversions
    )
    check_picture_size(config, diffusion)
    viewpoint = _viewpoint(config)
    preview_viewpoint = dataclasses.replace(viewpoint, size=_PREVIEW_SIZE)
    preview_azimuths = turntable_azimuths(_PREVIEW_VIEWS)
    begun = time.monotonic() - (history[-1]["seconds"] if history else 0.0)

    with (
        RunProgress(config.iterations, enabled=progress) as bar,
        gentle_interrupt(bar) as stop,
        MetricsFile(folder / "metrics.jsonl", earlier=history) as metrics_file,
    ):

        def on_progress(done: int, metrics: Metrics, state: TrainState) -> bool:
            numbers: dict[str, float | int] = {"iteration": done}
            numbers |= {name: value.item() for name, value in vars(metrics).items()}
            numbers["seconds"] = round(time.monotonic() - begun, 3)
            metrics_file.write(numbers)
            history.append(numbers)
            bar.update(done, float(numbers["loss"]), int(numbers["splats"]))
            if preview_every and done % preview_every == 0:
                images = render_around(state.gaussians, preview_azimuths, viewpoint=preview_viewpoint)
                sheet = view_sheet(images, preview_azimuths, note=f"iteration {done},")
                save_png(folder / "previews" / f"iteration_{done:05d}.png", sheet)
            if checkpoint_every and done % checkpoint_every == 0 and done < config.iterations:
                save_run(folder, state)
            return stop.requested

        def on_compiled(compilation: Compilation) -> None:
            bar.say(str(compilation))
            if not history and not resume:
                _remove_old_results(folder)
            write_json(folder / "config.json", description)

        result = run(config, diffusion, prompt, state, on_progress=on_progress, on_compiled=on_compiled)
    if result.interrupted:
        save_run(folder, result.state)
    else:
        forget_run(folder)
    frames = write_object(folder, result.gaussians, title=prompt, viewpoint=viewpoint)
    return Result(
        prompt=prompt,
        seed=seed,
        gaussians=result.gaussians,
        folder=folder,
        iterations=result.iterations,
        interrupted=result.interrupted,
        metrics=history,
        frames=frames,
    )
