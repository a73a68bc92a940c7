"""Text-to-3D in one call, from a prompt to an object on disk; used by `ge3d generate` and in notebooks."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.files import locked
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.mesh.packages import check_packages
from ge3d_jax.runs.asked import asked_by_file, asked_by_preset, refuse_beside_file
from ge3d_jax.runs.folder import prepare_folder
from ge3d_jax.runs.object_request import ObjectRequest
from ge3d_jax.runs.observers import SAVE_SECONDS, Observer
from ge3d_jax.runs.progress import told
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.iterations import HostNumbers


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a finished run. In a notebook it is displayed as a sheet of views.

    Attributes:
        prompt, seed: the prompt and seed of the run.
        gaussians: the object.
        folder: where everything was written.
        iterations: number of completed iterations; fewer than requested if `interrupted`.
        interrupted: whether Ctrl-C ended the run.
        diverged: whether the run was stopped because its gradients were not finite; the object is then the
            last good one.
        advice: sentences on why the run ended early and which settings would work better; usually empty.
        unwritten: sentences on what could not be written, e.g. because the disk was full; usually empty.
        metrics: the numbers of every iteration, as in metrics.jsonl.
        frames: the turntable, uint8 (T, H, W, 3), one full turn starting from the front.
    """

    prompt: str
    seed: int
    gaussians: Gaussians
    folder: Path
    iterations: int
    interrupted: bool
    diverged: bool
    advice: list[str]
    unwritten: list[str]
    metrics: list[HostNumbers]
    frames: np.ndarray

    def _repr_png_(self) -> bytes | None:
        views = self.folder / "views.png"
        return views.read_bytes() if views.is_file() else None


def _inversion_of(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The overrides that set the inversion of the loss."""
    return {name: value for name, value in (overrides or {}).items() if name.split(".")[-1] == "inversion"}


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
    edit_from: str | None = None,
    start_growth: str | None = None,
    reconstruct_from: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    preview_every: int = 25,
    save_seconds: float | None = SAVE_SECONDS,
    resume: bool = False,
    progress: bool = True,
    dtype: str | None = None,
    loras: Sequence[tuple[str | os.PathLike[str], float]] | None = None,
    textual_inversions: Sequence[str | os.PathLike[str]] | None = None,
    mesh: bool = False,
    observers: Sequence[Observer] = (),
) -> Result:
    """Generate a 3D object from a prompt and write it, along with images of it, to a folder.

    Args:
        prompt: what to generate, e.g. "a red mushroom"; None uses the preset's prompt, if it has one.
        preset: "toybox" for the bundled model, "toybox_ball" to start from a gray ball with it, "toybox64"
            for the earlier model of 64 pixels, "paper" for Stable Diffusion, "paper/lantern" and others for
            objects from the paper; None means "toybox".
        guidance: the loss, e.g. "ge3d" or "sds", with its settings for that preset; None uses the preset's.
        density: density control, i.e. how the number of splats changes: "clone_split", "mcmc", "relocate",
            or "replace_unseen"; None uses the preset's.
        config: the config.json of an earlier run, which replaces the preset, the loss, and density control to
            repeat that run. It also provides the prompt, seed, model, start, dtype, LoRA files, and textual
            inversions that are not given.
        seed: random seed; on the same machine, the same seed gives the same object, byte for byte. None uses
            the preset's, usually 0.
        model: a model to use instead of the bundled one: a folder in diffusers layout, a single .safetensors
            file, or a hub id, which is downloaded.
        out: output folder; None means outputs/<prompt>-<seed>. Results of an earlier run in it are replaced.
        start: the initialization: "ball", "box", or "point_e" (points that Point-E generates from the
            prompt); or the path of a splat file in any supported format, a point cloud with colors (.ply,
            .xyz), or a mesh (.glb, .obj, .ply, .stl). None uses the preset's.
        edit_from: a prompt that describes the object in `start`, for edits that preserve whatever `prompt`
            does not change: the setting `guidance.inversion` then defaults to "delta".
        start_growth: how the points of `start` are multiplied: "clones", "gaussian_dreamer", or "none"; None
            uses the start's default.
        reconstruct_from: the fraction of the iterations after which a reconstruction stage takes over, e.g.
            0.8; None leaves `reconstruction.start` to `overrides`, and by default there is no such stage.
        overrides: settings to change, by dotted name, e.g. {"guidance.scale": 10, "views": 2}; see
            `training.config` for their descriptions.
        preview_every: iterations between the images in previews/; 0 for none.
        save_seconds: seconds between checkpoints for `resume`, though saving never takes more than a fiftieth
            of the time; 0 saves after every iteration, None only at the end.
        resume: continue the run in the folder from its last checkpoint; the run must have been started with
            the same inputs. The number of iterations may be raised, even after the run has finished. A run
            without a checkpoint starts over.
        progress: whether to show a progress bar.
        dtype: compute dtype of the networks: "float32", "bfloat16", or "auto", which is bfloat16 on devices
            that support it well; None means "auto".
        loras: LoRA files to apply to the model, with strengths; strength 1 is as trained.
        textual_inversions: files with embeddings of new words that may be used in the prompt.
        mesh: whether to also write mesh.glb, a textured mesh; see `runs.mesh`.
        observers: callbacks for each iteration; see `runs.observers`.

    Returns:
        The result. Ctrl-C ends the run after the current iteration; the result is then the object as it
        stands, and `resume` continues from there.

    Raises:
        UserError: an input is invalid; results of an earlier run are then left untouched.
    """
    keep_compiled_code()
    if mesh:
        check_packages()
    if reconstruct_from is not None:
        overrides = {**(overrides or {}), "reconstruction.start": reconstruct_from}
    if config is None:
        asked = asked_by_preset(
            preset,
            guidance=guidance,
            density=density,
            start=start,
            growth=start_growth,
            overrides=overrides,
        )
    else:
        refuse_beside_file(preset=preset, guidance=guidance, density=density)
        asked = asked_by_file(config, start=start, growth=start_growth, overrides=overrides)
    asked = asked.but(
        prompt=prompt,
        seed=seed,
        model=model,
        edit_from=edit_from,
        dtype=dtype,
        loras=loras,
        textual_inversions=textual_inversions,
    )
    if edit_from is not None and asked.settings.guidance.uses_source:
        kept = {"guidance.inversion": "delta"}
        asked = asked.but(settings=with_overrides(asked.settings, {**kept, **_inversion_of(overrides)}))
    place = asked.model.check()
    request = ObjectRequest.checked(asked, place, out=out)
    prepare_folder(request.folder)
    with locked(request.folder):
        goes_on = resume and request.check_resumable(say=told(progress))
        diffusion = asked.model.load(place)
        request.check_model(diffusion)
        part = request.part(
            request.context(diffusion),
            resume=goes_on,
            preview_every=preview_every,
            observers=observers,
            progress=progress,
            mesh=mesh,
        )
        outcome = part.perform(doing="generating", progress=progress, save_seconds=save_seconds)
    return Result(
        prompt=request.prompt,
        seed=request.seed,
        gaussians=outcome.result.object,
        folder=request.folder,
        iterations=outcome.result.iterations,
        interrupted=outcome.result.interrupted,
        diverged=outcome.result.diverged,
        advice=outcome.advice,
        unwritten=outcome.unwritten,
        metrics=outcome.history,
        frames=outcome.written,
    )
