"""Objects made for a measurement, each once: they are found again by settings and the model's weights."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import kind_of
from ge3d_jax.formats.ply import load_ply
from ge3d_jax.runs.asked import asked_by_file
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.generate import generate
from ge3d_jax.runs.reconstruct import is_complete
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.config import Config
from ge3d_jax.training.presets import configured

_PRESET = "toybox"


def model_fingerprint(folder: Path) -> str:
    """Short hash of a model's weights (a folder or a file), to tell apart the results of different models."""
    digest = hashlib.sha256()
    for file in [folder] if folder.is_file() else sorted(folder.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def loss_name(
    guidance: str | None = None, overrides: Mapping[str, Any] | None = None, *, preset: str = _PRESET
) -> str:
    """The name of the loss that objects are made with.

    Args:
        guidance: name of a loss; None means the preset's.
        overrides: settings to change.
        preset: the preset that the settings are based on.

    Raises:
        UserError: a loss or a setting does not exist.
    """
    return kind_of(configured(preset, guidance=guidance, overrides=overrides), "guidance")


def object_folder(
    prompt: str,
    *,
    seed: int,
    folder: Path,
    preset: str = _PRESET,
    guidance: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """The folder in which `make_object`, called with the same arguments, stores the object."""
    return folder / loss_name(guidance, overrides, preset=preset) / f"{slug(prompt)}-{seed}"


def _finished_seconds(
    folder: Path,
    prompt: str,
    seed: int,
    preset: str,
    settings: Config,
    start: str | None,
    edit_from: str | None,
) -> float | None:
    """Seconds taken by the finished run in `folder`; None if there is no finished run with these inputs."""
    files = folder / "config.json", folder / "metrics.jsonl", folder / "object.ply"
    if not all(file.is_file() for file in files):
        return None
    try:
        with warnings.catch_warnings():
            # Settings newer than the run take the preset's values, so the object would be the same.
            warnings.simplefilter("ignore")
            found = asked_by_file(files[0], overrides=None)
    except UserError:
        return None
    lines = files[1].read_text(encoding="utf-8").splitlines()
    asked = (found.preset, found.prompt, found.seed, found.start, found.edit_from, found.settings)
    if not lines or asked != (preset, prompt, seed, start, edit_from, settings):
        return None
    if settings.reconstruction.start is not None and not is_complete(folder):
        return None
    last = json.loads(lines[-1])
    return last["seconds"] if last["iteration"] == settings.distilled_iterations else None


def make_object(
    prompt: str,
    *,
    seed: int,
    folder: Path,
    preset: str = _PRESET,
    model: str | None = None,
    guidance: str | None = None,
    start: Path | None = None,
    edit_from: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Gaussians, float]:
    """Generate an object, or load it if it has already been generated.

    Args:
        prompt: a sentence of the Toybox world.
        seed: random seed of the run.
        folder: folder for all objects, with a subfolder for each loss and, within it, one for each object.
        preset: the preset that the settings are based on.
        model: a model to use instead of the preset's.
        guidance: the loss; None means the preset's.
        start: the initial splat file; None means the preset's start.
        edit_from: a description of the object in `start`, to preserve what the prompt does not change;
            `overrides` then set `guidance.inversion`.
        overrides: settings to change.

    Returns:
        The splats, and the seconds from the first iteration to the last, including compilation.

    Raises:
        UserError: see `generate`.
        KeyboardInterrupt: the user stopped the run.
    """
    out = object_folder(
        prompt, seed=seed, folder=folder, preset=preset, guidance=guidance, overrides=overrides
    )
    begun_with = None if start is None else str(start)
    config = configured(preset, guidance=guidance, start=begun_with, overrides=overrides)
    asked = (prompt, seed, preset, config, begun_with, edit_from)
    if _finished_seconds(out, *asked) is None:
        result = generate(
            prompt,
            preset=preset,
            guidance=guidance,
            seed=seed,
            model=model,
            out=out,
            start=begun_with,
            edit_from=edit_from,
            overrides=overrides,
            preview_every=0,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        if result.diverged:
            raise UserError(f'No object for "{prompt}": {result.advice[0]}')
    seconds = _finished_seconds(out, *asked)
    if seconds is None:
        raise RuntimeError(f"The run in {out} did not write the expected files.")
    return load_ply(out / "object.ply"), seconds
