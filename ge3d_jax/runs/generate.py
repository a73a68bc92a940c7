"""From a sentence to an object on disk, in one call: what `experiments/generate.py` and a notebook use."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import to_tree
from ge3d_jax.formats.splats import load_splats
from ge3d_jax.runs.asked import asked_by_file, asked_by_preset, refuse_beside_file
from ge3d_jax.runs.folder import prepare_folder, slug, versions
from ge3d_jax.runs.observers import Observer, Previews
from ge3d_jax.runs.reconstruct import reconstruct, remove_reconstruction
from ge3d_jax.runs.request import (
    check_given,
    check_image_size,
    check_picture_size,
    check_prompt,
    check_seed,
)
from ge3d_jax.runs.results import remove_object, write_object
from ge3d_jax.runs.resume import check_same_run, resume_run
from ge3d_jax.runs.run import Run
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted, begin, prompt_embeddings
from ge3d_jax.training.iterations import HostNumbers, RunResult
from ge3d_jax.viewer.turntable import Viewpoint


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run. In a notebook it shows itself as its sheet of views.

    Attributes:
        prompt, seed: what was asked for.
        gaussians: the object.
        folder: where everything was written.
        iterations: how many were done; fewer than asked for when `interrupted`.
        interrupted: whether Ctrl-C ended the run.
        diverged: whether it was ended since its gradients were not finite; the object is the last good one.
        advice: sentences on why the run ended early and on what other settings would do better; mostly none.
        metrics: the numbers of every iteration, as in metrics.jsonl.
        frames: the turntable, uint8 (T, H, W, 3), once around from the front.
    """

    prompt: str
    seed: int
    gaussians: Gaussians
    folder: Path
    iterations: int
    interrupted: bool
    diverged: bool
    advice: list[str]
    metrics: list[HostNumbers]
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


def _with_room_for(config: Config, start: Gaussians) -> Config:
    """The settings with a scene that holds what it begins with."""
    return dataclasses.replace(config, scene=config.scene.holding(start))


def check_times(config: Config, steps: int) -> None:
    """Refuse a loss that would ask for times the model does not have.

    Args:
        config: all settings.
        steps: the number of the model's times.

    Raises:
        UserError: names the latest time.
    """
    latest = config.guidance.latest_time
    if latest >= steps:
        raise UserError(
            f"The times of the setting guidance go up to {latest}, but the model's times end at {steps - 1}; "
            "lower them."
        )
    stage = config.reconstruction
    if stage.start is not None and stage.latest_node >= steps:
        raise UserError(
            f"The setting reconstruction.latest_node is {stage.latest_node}, but the model's times end at "
            f"{steps - 1}; lower it."
        )


def generate(
    prompt: str | None = None,
    *,
    preset: str | None = None,
    guidance: str | None = None,
    density: str | None = None,
    config: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    model: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    reconstruct_from: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    preview_every: int = 25,
    checkpoint_every: int = 250,
    resume: bool = False,
    progress: bool = True,
    dtype: str | None = None,
    loras: Sequence[tuple[str | os.PathLike[str], float]] | None = None,
    textual_inversions: Sequence[str | os.PathLike[str]] | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Make a 3D object from a sentence and write it, with pictures of it, to a folder.

    Args:
        prompt: what to make, as "a red mushroom"; None for the preset's, where it has one.
        preset: "toybox" for the bundled model, "paper" for Stable Diffusion, "paper/lantern" and others for
            what the paper made; None is "toybox".
        guidance: the loss, as "ge3d" or "sds", with its settings for that preset; None for the preset's.
        density: how the number of splats changes, "clone_split" or "mcmc"; None for the preset's way.
        config: instead of a preset, a loss and density control: the config.json of a run, for the same run
            again. It also stands in for the prompt, seed, model, start, dtype, loras and textual inversions
            that are not given.
        seed: same seed on the same machine, same object, byte by byte; None for the preset's, 0 for most.
        model: another model than the bundled one: a folder in diffusers' layout, a single .safetensors file,
            or an id of the hub, which is downloaded.
        out: folder; None is outputs/<prompt>-<seed>. Results of an earlier run in it are replaced.
        start: a splat file (.ply, .splat or .spz) to begin with instead of a gray ball.
        reconstruct_from: the share of the iterations after which a reconstructive stage takes their place, as
            0.8; None for what `overrides` say of `reconstruction.start`, by default none.
        overrides: settings to change, by dotted name: {"guidance.scale": 10, "views": 2}.
        preview_every: iterations between pictures in previews/; 0 for none.
        checkpoint_every: iterations between saved states, which an interrupted run goes on from; 0 for none.
        resume: go on with the interrupted run in the folder, which was asked for the same.
        progress: whether to show a bar.
        dtype: what the networks compute in: "float32", "bfloat16", or "auto", bfloat16 where the device is
            made for it; None is "auto".
        loras: LoRA files and strengths to change the model by; 1 is as they were trained.
        textual_inversions: files with the embeddings of new words, for use in the prompt.
        observers: more to tell of each iteration; see `runs.observers`.

    Returns:
        Result. Ctrl-C ends the run after the iteration at hand; the result is the object as it stands, and
        `resume` goes on from there.

    Raises:
        UserError: an input that cannot be used; results of an earlier run are untouched then.
    """
    keep_compiled_code()
    if reconstruct_from is not None:
        overrides = {**(overrides or {}), "reconstruction.start": reconstruct_from}
    if config is None:
        asked = asked_by_preset(preset, guidance=guidance, density=density, overrides=overrides)
    else:
        refuse_beside_file(preset=preset, guidance=guidance, density=density)
        asked = asked_by_file(config, overrides=overrides)
    asked = asked.but(
        prompt=prompt,
        seed=seed,
        model=model,
        start=start,
        dtype=dtype,
        loras=loras,
        textual_inversions=textual_inversions,
    )
    prompt, settings, usual = check_given(asked.prompt), asked.settings, asked.usual
    folder_of_model = asked.model.check()
    check_prompt(prompt, folder_of_model)
    check_seed(asked.seed)
    check_image_size(settings, folder_of_model)
    started = load_splats(asked.start) if asked.start is not None else None
    if started is not None:
        settings, usual = _with_room_for(settings, started), _with_room_for(usual, started)
    folder = prepare_folder(out if out is not None else Path("outputs") / f"{slug(prompt)}-{asked.seed}")
    description = {
        "prompt": prompt,
        "seed": asked.seed,
        "preset": asked.preset,
        "start": str(asked.start) if asked.start is not None else None,
        **asked.model.describe(),
        "settings": to_tree(settings),
        "versions": versions(),
    }
    if resume:
        check_same_run(folder, description, {"settings": to_tree(usual)})
    diffusion = asked.model.load(folder_of_model)
    check_picture_size(settings, diffusion)
    check_times(settings, diffusion.schedule.steps)
    task = Distillation(settings)
    state = begin(settings, diffusion, jax.random.key(asked.seed), start=started)
    history: list[HostNumbers] = []
    if resume:
        state, history = resume_run(folder, state, settings.scene)
    run = Run(
        folder=folder,
        description=description,
        task=task,
        context=Prompted(diffusion, prompt_embeddings(settings, diffusion, prompt)),
        parts=settings.views_per_pass // settings.guidance.views_together,
        history=history,
        is_new=not resume,
        stop_at=settings.distilled_iterations,
    )
    viewpoint = _viewpoint(settings)

    def remove_old(folder: Path) -> None:
        remove_object(folder)
        remove_reconstruction(folder)

    def then(result: RunResult) -> RunResult:
        if settings.reconstruction.start is None:
            return result
        # The scene's buffers have grown with the run.
        grown = dataclasses.replace(task, config=dataclasses.replace(settings, scene=result.task.scene))
        return reconstruct(folder, grown, run.context, result, progress=progress)

    def write(result: RunResult) -> np.ndarray:
        return write_object(folder, result.object, title=prompt, viewpoint=viewpoint)

    outcome = run.perform(
        state,
        doing="generating",
        progress=progress,
        checkpoint_every=checkpoint_every,
        observers=[Previews(folder, settings.scene, viewpoint, every=preview_every), *observers],
        remove_old=remove_old,
        write=write,
        then=then,
    )
    return Result(
        prompt=prompt,
        seed=asked.seed,
        gaussians=outcome.result.object,
        folder=folder,
        iterations=outcome.result.iterations,
        interrupted=outcome.result.interrupted,
        diverged=outcome.result.diverged,
        advice=outcome.advice,
        metrics=outcome.history,
        frames=outcome.written,
    )
