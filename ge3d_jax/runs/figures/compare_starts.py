"""What a better beginning is worth: GE3D from a gray ball, and from the points that Point-E makes.

The paper begins every object with Point-E. Here both have the same time, and each object is judged on the
way, so that one sees what the beginning saves, and whether the end is another one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ge3d_jax.core.tables import markdown_table, number_cell
from ge3d_jax.runs.evaluation_prompts import PROMPTS
from ge3d_jax.runs.figures.base import Figure, Made, Work
from ge3d_jax.runs.figures.convergence import curves
from ge3d_jax.runs.figures.loss_series import Done, Judges
from ge3d_jax.runs.figures.loss_settings import (
    EQUAL_TIMES,
    PAPER_PROMPTS,
    Settings,
    counted_objects,
    made_or_read,
)
from ge3d_jax.runs.judging import METRICS
from ge3d_jax.runs.judging_table import table
from ge3d_jax.runs.trials import Trial
from ge3d_jax.viewer.picture_table import picture_table
from ge3d_jax.viewer.plot import Panel, check_plotting, draw_plot

STARTS = ("ball", "point_e")
_BY = "start"
_TRIALS = tuple(Trial("ge3d", start=start) for start in STARTS)
_METRICS = (
    "views_right",
    "one_front",
    "multi_faced",
    "failed",
    "psnr",
    "overlap",
    "chamfer",
    "sharpness",
    "saturation",
)
_DRAWN = ("views_right", "psnr", "chamfer")
# The first of them is that of one iteration, after which a run is still nearly where it began.
_SHARES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75)
# The evaluation's first prompts, each of another kind.
_SHOWN = 8
SIZES: Mapping[str, Settings] = {
    "small": Settings(
        preset="toybox64",
        trials=_TRIALS,
        prompts=PROMPTS[1:3],
        seeds=(0,),
        budget=8.0,
        processes=2,
        metrics=_METRICS,
        shares=(0.0, 0.2, 0.5),
    ),
    "full": Settings(
        preset="toybox",
        trials=_TRIALS,
        prompts=PROMPTS,
        seeds=(0,),
        budget=45.0,
        processes=2,
        metrics=_METRICS,
        shares=_SHARES,
    ),
    "paper": Settings(
        preset="paper",
        trials=_TRIALS,
        prompts=PAPER_PROMPTS,
        seeds=(0,),
        budget=1800.0,
        processes=1,
        # No truth is known there.
        metrics=("failed", "seconds"),
        shares=_SHARES,
    ),
}


def rows_of(all_done: Sequence[Done]) -> list[dict[str, Any]]:
    """A line for each object at each moment."""
    return [
        {_BY: done.series.trial.start, "prompt": one.prompt, "seed": one.seed, "moment": index, **numbers}
        for done in all_done
        for one in done.objects
        for index, numbers in enumerate(one.moments)
    ]


def ends_of(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of the objects' last moments."""
    last = {(row[_BY], row["prompt"], row["seed"]): row for row in rows}
    return list(last.values())


def first_recognized(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """After how many iterations all views of an object are first recognized, of those where they ever are.

    Args:
        rows: of one start, the moments of each object in their order.
    """
    first: dict[tuple[str, int], int] = {}
    for row in rows:
        if row["views_right"] == 1.0:
            first.setdefault((row["prompt"], row["seed"]), row["iterations"])
    return list(first.values())


def recognition_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How soon objects are recognized from all sides, a line for each start; Markdown."""
    lines = []
    for start in dict.fromkeys(row[_BY] for row in rows):
        own = [row for row in rows if row[_BY] == start]
        at_first = [row["views_right"] for row in own if row["moment"] == 0]
        found = first_recognized(own)
        lines.append(
            {
                _BY: start,
                "views recognized after the first iteration": f"{np.mean(at_first):.2f}",
                "objects ever recognized from all sides": f"{len(found)} of {len(at_first)}",
                "iterations until then, median": number_cell(np.median(found) if found else None, 0),
                "iterations in all": str(max(row["iterations"] for row in own)),
            }
        )
    return markdown_table(lines)


def _text(settings: Settings, all_done: Sequence[Done], rows: Sequence[Mapping[str, Any]]) -> str:
    how = (
        f"{counted_objects(settings, all_done)}, made in about {settings.budget:g} seconds each by the "
        f"preset `{settings.preset}`, and judged on the way. Compiling, judging, and the seconds that "
        "Point-E takes are not counted. Mean ± standard error over prompts."
    )
    parts = [how, table(ends_of(rows), _BY, metrics=settings.metrics)]
    if any("views_right" in row for row in rows):
        parts.append(recognition_table(rows))
    return "\n\n".join(parts)


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """A panel for each of some metrics, over the iterations."""
    panels = [
        Panel("", "iterations", METRICS[name].label, lines)
        for name in _DRAWN
        if (lines := curves(rows, name, "iterations", by=_BY))
    ]
    return draw_plot(panels, columns=len(panels))


def draw_objects(all_done: Sequence[Done]) -> np.ndarray:
    """Fronts on the way: a row for each prompt, a group of columns for each start."""
    prompts = list(dict.fromkeys(one.prompt for done in all_done for one in done.objects))[:_SHOWN]
    rows = [
        [next(list(one.sides[:, 0]) for one in done.objects if one.prompt == prompt) for done in all_done]
        for prompt in prompts
    ]
    shares = ", ".join(f"{share:.0%}" for share in (*all_done[0].series.shares[1:], 1.0))
    headings = [
        f"{done.series.trial.start}: its beginning, then after {shares} of the run" for done in all_done
    ]
    return picture_table(rows, prompts, headings)


def make(work: Work, *, settings: Settings | None = None, judges: Judges | None = None) -> Made:
    """Make the objects, and tell how good they are and how soon.

    Args:
        work: see `Figure`.
        settings: others than those of the size.
        judges: what objects are judged by; None for those of the Toybox world.

    Raises:
        UserError: Point-E's weights are not there, before anything runs; see `made_or_read` for others.
    """
    settings = settings or SIZES[work.size]
    check_plotting()
    parts, _ = made_or_read(settings, work, judges=judges)
    all_done = parts[EQUAL_TIMES]
    rows = rows_of(all_done)
    pictures = {"objects": draw_objects(all_done)}
    if any("views_right" in row for row in rows):
        pictures = {"": draw_curves(rows), **pictures}
    return Made(rows, _text(settings, all_done, rows), pictures)


FIGURE = Figure(
    title="What a better beginning is worth: a gray ball beside Point-E",
    source="Beyond the paper: it begins every object with Point-E",
    expected=(
        "Objects that begin with Point-E's points are recognized at once, and their shape is right sooner; "
        "fewer of them look two ways."
    ),
    seconds={"small": 100.0, "full": 2400.0},
    make=make,
    is_timed=True,
)
