"""Losses side by side on the Toybox world: what each makes of the same sentences, in numbers and pictures."""

import csv
import hashlib
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.metrics.pictures import psnr
from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.runs.evaluate import (
    PRESET,
    make_object,
    measure_object,
    object_pictures,
    summarize_objects,
    true_pictures,
)
from ge3d_jax.runs.evaluation_report import object_sides
from ge3d_jax.runs.folder import slug
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.presets import configured
from ge3d_jax.viewer.sheet import image_grid

# One thing without a front and three with one, each in another color.
PROMPTS = ("a red mushroom", "a yellow duck", "a blue robot", "a green house")
# Edge of a picture in the sheet: sixteen stand side by side.
_SHOWN_SIZE = 96
SIDES = ("front", "left", "back", "right")
_COLUMNS = (
    "loss",
    "changes",
    "iterations",
    "prompt",
    "views_right",
    "fronts_at_degrees",
    "one_front",
    "true_view_psnr",
    "seconds",
)


@dataclass(frozen=True)
class Trial:
    """A loss, and what differs from its settings for the preset.

    Attributes:
        guidance: the loss's name.
        overrides: settings by dotted name.
    """

    guidance: str
    overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def changes(self) -> str:
        """The overrides in one line."""
        return " ".join(f"{name}={value}" for name, value in self.overrides.items())

    def folder(self, parent: Path) -> Path:
        """Where its objects are: `parent` without changes, else a folder of its own in it."""
        if not self.overrides:
            return parent
        # A slug is cut at some length, and trials may differ behind it.
        return parent / f"{slug(self.changes)}-{hashlib.sha256(self.changes.encode()).hexdigest()[:8]}"


def parse_trials(text: str, source: str) -> list[Trial]:
    """Read trials, one a line: a loss's name, then name=value for each setting; # begins a comment.

    Args:
        text: the lines; a value with spaces stands in quotes.
        source: where they are from, for messages.

    Raises:
        UserError: a line that is no trial, with its number, or no trials at all.
    """
    trials = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
            if not words:
                continue
            pairs = [word.partition("=") for word in words[1:]]
            if not all(name and equals for name, equals, _ in pairs):
                raise UserError("write the loss and then name=value for each setting.")
            trial = Trial(words[0], {name: value for name, _, value in pairs})
            configured(PRESET, guidance=trial.guidance, overrides=trial.overrides)
        except (UserError, ValueError) as error:
            raise UserError(f"{source}, line {number}: {error}") from error
        trials.append(trial)
    if not trials:
        raise UserError(f"{source} has no trials; write a loss's name on each line.")
    return trials


def run_trial(
    trial: Trial,
    prompts: Sequence[str],
    *,
    seed: int,
    folder: Path,
    gallery: Gallery,
    make: Callable[..., tuple[Gaussians, float]] = make_object,
) -> tuple[dict[str, Any], np.ndarray]:
    """Make and judge one object of each prompt; finished objects are not made again.

    Args:
        trial: what to make them with.
        prompts: sentences of the Toybox world with a single color.
        seed: of the first object; each next one has the next seed.
        folder: of all objects.
        gallery: what they are recognized by.
        make: as `make_object`.

    Returns:
        The figures, ready for JSON, and four sides of each object, uint8 (prompts · 4, H, W, 3).

    Raises:
        UserError: a run that diverged.
        KeyboardInterrupt: the user stopped a run.
    """
    objects, sides = [], []
    for index, prompt in enumerate(prompts):
        gaussians, seconds = make(
            prompt,
            seed=seed + index,
            folder=trial.folder(folder),
            guidance=trial.guidance,
            overrides=trial.overrides,
        )
        pictures = object_pictures(gaussians)
        likeness = float(psnr(jnp.asarray(pictures), jnp.asarray(true_pictures(prompt))))
        objects.append(
            {"seconds": seconds, "true_view_psnr": round(likeness, 2)}
            | measure_object(gallery, prompt, pictures)
        )
        sides.append(object_sides(gaussians, _SHOWN_SIZE))
    iterations = configured(PRESET, guidance=trial.guidance, overrides=trial.overrides).iterations
    figures = {
        "guidance": trial.guidance,
        "changes": trial.changes,
        "iterations": iterations,
        **summarize_objects(objects),
        "true_view_psnr": round(float(np.mean([one["true_view_psnr"] for one in objects])), 2),
        "list": objects,
    }
    return figures, np.concatenate(sides)


def _fronts(figures: Mapping[str, Any]) -> str:
    judged = [one["one_front"] for one in figures["list"] if one["one_front"] is not None]
    return f"{sum(judged)} of {len(judged)}"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures of `run_trial`, a line each."""
    lines = [
        "| loss | views right | one front | PSNR to the true views | iterations | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = " ".join(filter(None, (row["guidance"], row["changes"])))
        cells = [
            f"`{name}`",
            f"{row['right_kind_and_color']:.0%}",
            _fronts(row),
            f"{row['true_view_psnr']:.1f} dB",
            str(row["iterations"]),
            f"{row['mean_seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every object of every row of `run_trial`, a line each."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        for one in row["list"]:
            fronts = " ".join(map(str, one["fronts_at_degrees"]))
            writer.writerow(
                [row["guidance"], row["changes"], row["iterations"], one["prompt"]]
                + [one["right_kind_and_color"], fronts, one["one_front"]]
                + [one["true_view_psnr"], round(one["seconds"], 1)]
            )
    return table.getvalue()


def picture(rows: Sequence[Mapping[str, Any]], sides: Sequence[np.ndarray]) -> np.ndarray:
    """A row of pictures for each trial: four sides of each object, uint8 (H, W, 3)."""
    labels = []
    for row in rows:
        for one in row["list"]:
            labels += [f"{row['guidance']}: {one['prompt']}", *SIDES[1:]]
    return image_grid(list(np.concatenate(sides)), labels, columns=len(sides[0]))
