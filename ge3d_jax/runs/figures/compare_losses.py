"""Table 1: all losses side by side, in equal times and in their own numbers of iterations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ge3d_jax.core.tables import counted
from ge3d_jax.runs.figures.base import Figure, Made, Work
from ge3d_jax.runs.figures.loss_series import SIDES, Done, Judges
from ge3d_jax.runs.figures.loss_settings import (
    ALL_LOSSES,
    EQUAL_TIMES,
    PAPER_PROMPTS,
    Settings,
    counted_objects,
    made_or_read,
)
from ge3d_jax.runs.figures.weighed import find_scales, weigh
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.judging import METRICS
from ge3d_jax.runs.judging_table import table
from ge3d_jax.runs.trials import Trial
from ge3d_jax.viewer.picture_table import picture_table
from ge3d_jax.viewer.sheet import to_uint8

_COLUMNS = (
    "views_right",
    "multi_faced",
    "psnr",
    "overlap",
    "chamfer",
    "shape_diversity",
    "texture_diversity",
    "failed",
    "seconds",
)
# None of these was used to find settings; all kinds except the last have a front.
_PROMPTS = (
    "a green robot",
    "a pink house",
    "a blue duck",
    "a grey cat",
    "a red penguin",
    "an orange television",
    "a yellow pig",
    "a cyan mushroom",
)
SIZES: Mapping[str, Settings] = {
    "small": Settings(
        preset="toybox64",
        trials=(Trial("ge3d"), Trial("sds"), Trial("ism")),
        prompts=_PROMPTS[:2],
        seeds=(0,),
        budget=8.0,
        processes=2,
        metrics=_COLUMNS,
    ),
    "full": Settings(
        preset="toybox_ball",
        trials=ALL_LOSSES,
        prompts=_PROMPTS,
        seeds=(0, 1),
        budget=45.0,
        processes=2,
        metrics=_COLUMNS,
        own_length=3,
    ),
    "paper": Settings(
        preset="paper",
        trials=ALL_LOSSES,
        prompts=PAPER_PROMPTS,
        seeds=(0, 1),
        budget=1800.0,
        processes=1,
        # No truth is known there; metrics without their weights say how to get them.
        metrics=("clip_similarity", "r_precision", "brisque", "failed", "seconds"),
        own_length=len(PAPER_PROMPTS),
    ),
}
_OWN_COLUMN = "loss, iterations"
# Indices into an object's four sides: the front and the back.
_SHOWN = (0, 2)


def rows_of(part: str, all_done: Sequence[Done]) -> list[dict[str, Any]]:
    """A row for each object, and one for each loss with the metrics of its objects as a group."""
    rows: list[dict[str, Any]] = []
    for done in all_done:
        first = {"part": part, "loss": done.series.trial.label}
        for one in done.objects:
            rows.append({**first, "prompt": one.prompt, "seed": one.seed, **one.moments[-1]})
        rows.append({**first, **done.together})
    return rows


def _text(settings: Settings, parts: Mapping[str, list[Done]], rows: Sequence[Mapping[str, Any]]) -> str:
    paragraphs = []
    for name, all_done in parts.items():
        iterations = {
            done.series.trial.label: max(one.moments[-1]["iterations"] for one in done.objects)
            for done in all_done
        }
        of_part = [
            {_OWN_COLUMN: f"`{row['loss']}`, {iterations[row['loss']]}", **row}
            for row in rows
            if row["part"] == name
        ]
        paragraphs += [
            f"### {name.capitalize()}",
            _how(settings, all_done, name),
            table(of_part, _OWN_COLUMN, metrics=settings.metrics),
        ]
    return "\n\n".join(paragraphs)


def _how(settings: Settings, all_done: Sequence[Done], part: str) -> str:
    """A paragraph on how the objects of a part were made."""
    series = all_done[0].series
    length = (
        f"as many iterations as fit {settings.budget:g} seconds, and schedules stretched to them"
        if part == EQUAL_TIMES
        else f"the iterations of the preset `{settings.preset}`"
    )
    cores = (
        f"{settings.processes} processes worked at a time, each on one processor core."
        if settings.processes > 1
        else "One process worked at a time."
    )
    return (
        f"{counted_objects(settings, all_done)}, {counted(len(series.prompts), 'prompt')} with "
        f"{counted(len(series.seeds), 'seed')}: {length}. "
        "Seconds are those of the iterations; compiling is not counted. "
        f"{cores} Mean ± standard error over prompts."
    )


def draw(all_done: Sequence[Done], true_sides: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw a row for the truth and each loss, with front and back of each prompt's first object."""
    prompts = list(dict.fromkeys(one.prompt for done in all_done for one in done.objects))
    rows, names = [], []
    if true_sides:
        rows.append([_pair(true_sides.get(prompt)) for prompt in prompts])
        names.append("the truth")
    for done in all_done:
        first: dict[str, np.ndarray] = {}
        for one in done.objects:
            first.setdefault(one.prompt, one.sides[-1])
        rows.append([_pair(first.get(prompt)) for prompt in prompts])
        names.append(done.series.trial.label)
    return picture_table(rows, names, prompts)


def _pair(sides: np.ndarray | None) -> list[np.ndarray | None]:
    return [None if sides is None else sides[index] for index in _SHOWN]


def make(
    work: Work,
    *,
    settings: Settings | None = None,
    only_done: bool = False,
    judges: Judges | None = None,
) -> Made:
    """Make the table.

    Args:
        work: see `Figure`.
        settings: settings to use instead of the size's own.
        only_done: make no objects, only a table of the existing ones.
        judges: what to judge objects by; None for the judges of the Toybox world.

    Raises:
        UserError: a CLIP model cannot be loaded; see `made_or_read` for other reasons.
    """
    settings = settings or SIZES[work.size]
    scales = find_scales(settings.metrics, settings.clip, settings.inception)
    lacking = {} if scales is None else scales.weights.lacking(settings.metrics)
    left_out = [f"{METRICS[name].label} is left out: {remedy}" for name, remedy in lacking.items()]
    for sentence in left_out:
        work.report(sentence)
    parts, judges = made_or_read(settings, work, only_done=only_done, judges=judges)
    if scales is not None:
        parts = {
            name: [weigh(done, judges, scales, keeps=not only_done) for done in all_done]
            for name, all_done in parts.items()
        }
    rows = [row for name, all_done in parts.items() for row in rows_of(name, all_done)]
    true_sides = {prompt: to_uint8(truth.pictures[SIDES]) for prompt, truth in judges.truths.items()}
    pictures = {
        "" if name == EQUAL_TIMES else slug(name).replace("-", "_"): draw(all_done, true_sides)
        for name, all_done in parts.items()
    }
    return Made(rows, "\n\n".join([_text(settings, parts, rows), *left_out]), pictures)


FIGURE = Figure(
    title="All losses side by side, in equal times and in their own numbers of iterations",
    source="Table 1",
    expected=(
        "The paper's claim: GE3D makes the best objects, ISM and MVDream's loss the next best, and SDS poor "
        "ones. In equal times, the cheap iterations of SDS count for more than in the paper, where each "
        "loss has its own number of them."
    ),
    seconds={"small": 150.0, "full": 9500.0},
    make=make,
    is_timed=True,
)
