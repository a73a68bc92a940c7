"""The reconstruction stage of a run, with an evaluation on held-out cameras."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.files import remove_files
from ge3d_jax.runs.attempts import Attempts
from ge3d_jax.runs.fit import evaluate
from ge3d_jax.runs.folder import write_json
from ge3d_jax.runs.observers import Bar
from ge3d_jax.runs.progress import say
from ge3d_jax.training.distillation import Distillation, Prompted
from ge3d_jax.training.iterations import RunResult, iterate
from ge3d_jax.training.photometric import Photometric
from ge3d_jax.training.reconstruction import (
    Angles,
    as_views,
    begin_stage,
    cameras_at,
    edited_views,
    held_out_angles,
    ring_angles,
    stage_config,
)
from ge3d_jax.viewer.sheet import enlarge, image_grid, save_png, to_uint8

_SHEET = "reconstruction.png"
_NUMBERS = "reconstruction.json"
# Number of held-out views on the sheet, and their minimum size, pixels.
_SHOWN = 6
_SHOWN_SIZE = 192


def remove_reconstruction(folder: Path) -> None:
    """Remove the results of an earlier run's stage."""
    remove_files([folder / _SHEET, folder / _NUMBERS])


def read_numbers(folder: Path) -> dict[str, Any]:
    """Return what a stage measured; raises FileNotFoundError if there was none."""
    numbers: dict[str, Any] = json.loads((folder / _NUMBERS).read_text(encoding="utf-8"))
    return numbers


def is_complete(folder: Path) -> bool:
    """Whether a run's stage went through to its end."""
    if not (folder / _NUMBERS).is_file():
        return False
    numbers = read_numbers(folder)
    return not (numbers.get("interrupted", True) or numbers.get("diverged", True))


def _sheet(
    truths: np.ndarray, before: np.ndarray, after: np.ndarray, psnrs: list[np.ndarray], angles: Angles
) -> np.ndarray:
    """Evenly chosen held-out views: edited images above the renders before and after the stage."""
    chosen = np.unique(np.linspace(0, len(truths) - 1, _SHOWN).round().astype(int))
    polar, azimuth = (np.rad2deg(angle) for angle in angles)
    labels = [f"edited, {azimuth[index]:.0f}°, polar {polar[index]:.0f}°" for index in chosen]
    for name, decibels in zip(("before", "after"), psnrs, strict=True):
        labels += [f"{name}, {decibels[index]:.1f} dB" for index in chosen]
    rows = [
        enlarge(to_uint8(row[index]), minimum=_SHOWN_SIZE)
        for row in (truths, before, after)
        for index in chosen
    ]
    return image_grid(rows, labels, columns=len(chosen))


def reconstruct(
    folder: Path,
    task: Distillation,
    context: Prompted,
    result: RunResult,
    attempts: Attempts,
    *,
    progress: bool,
) -> RunResult:
    """Edit views of the object, fit the object to them, and record how well held-out views match their edits.

    Args:
        folder: folder of the run.
        task: the distillation, with its scene's grown buffers.
        context: the model and the prompt.
        result: the result of the distillation.
        attempts: collects what cannot be written.
        progress: whether to show a progress bar and a summary.

    Returns:
        The result of the stage, with the distillation's number of iterations. Ctrl-C ends it after the
        current step.
    """
    config = task.config
    fitted, held_out = ring_angles(config.reconstruction), held_out_angles(config.reconstruction)
    count = len(fitted[0])
    angles = (np.concatenate([fitted[0], held_out[0]]), np.concatenate([fitted[1], held_out[1]]))
    cameras = cameras_at(config, angles)
    edited = edited_views(task, result.state, context, cameras, angles[1])
    views = as_views(edited, cameras)
    to_fit = dataclasses.replace(
        views, pixels=views.pixels[:count], world_to_camera=views.world_to_camera[:count]
    )
    stage = stage_config(config)
    before, psnr_before, _ = evaluate(result.object, views, background=config.background.color)
    state = begin_stage(stage, result.state, result.object)
    with Bar(stage.iterations, enabled=progress, doing="reconstructing") as bar:
        ended = iterate(
            state,
            to_fit,
            Photometric(stage),
            parts=stage.views,
            on_iteration=bar.on_iteration,
            on_compiled=bar.on_compiled,
        )
    after, psnr_after, _ = evaluate(ended.object, views, background=config.background.color)
    measured = {
        name: {"before": float(psnr_before[part].mean()), "after": float(psnr_after[part].mean())}
        for name, part in (("fitted", slice(count)), ("held_out", slice(count, None)))
    }
    numbers = {
        "steps": ended.iterations,
        "interrupted": ended.interrupted,
        "diverged": ended.diverged,
        "psnr": measured,
        "held_out_views": [
            {"polar_degrees": polar, "azimuth_degrees": azimuth, "before": old, "after": new}
            for polar, azimuth, old, new in zip(
                *(np.rad2deg(angle).tolist() for angle in held_out),
                psnr_before[count:].tolist(),
                psnr_after[count:].tolist(),
                strict=True,
            )
        ],
    }
    with attempts.at(_NUMBERS):
        write_json(folder / _NUMBERS, numbers)
    others = slice(count, None)
    psnrs = [psnr_before[others], psnr_after[others]]
    with attempts.at(_SHEET):
        save_png(folder / _SHEET, _sheet(edited[others], before[others], after[others], psnrs, held_out))
    if progress:
        say(
            f"{ended.iterations} steps on {count} edited pictures changed the PSNR to the model's edits from "
            f"{measured['held_out']['before']:.1f} to {measured['held_out']['after']:.1f} dB, in "
            f"{len(held_out[0])} held-out views."
        )
    return dataclasses.replace(ended, iterations=result.iterations)
