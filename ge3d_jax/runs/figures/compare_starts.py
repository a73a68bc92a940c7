"""The value of a better initialization: GE3D from a gray ball and from a Point-E cloud.

The paper initializes every object with Point-E. Here both starts get the same time, and objects are evaluated
along the way, which shows how much time the better start saves and whether the final result differs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ge3d_jax.core.tables import markdown_table, number_cell
from ge3d_jax.runs.evaluation_prompts import PROMPTS
from ge3d_jax.runs.figures import convergence
from ge3d_jax.runs.figures.base import Figure, Made, Work
from ge3d_jax.runs.figures.loss_series import Done, Judges
from ge3d_jax.runs.figures.loss_settings import (
    EQUAL_TIMES,
    PAPER_PROMPTS,
    Settings,
    counted_objects,
    made_or_read,
)
from ge3d_jax.runs.judging_table import table
from ge3d_jax.runs.trials import Trial
from ge3d_jax.viewer.picture_table import picture_table
from ge3d_jax.viewer.plot import check_plotting

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
# The first share gives one iteration, after which a run is still close to its start.
_SHARES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75)
# Number of evaluation prompts shown, each of a different kind.
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
        preset="toybox_ball",
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
        # There is no ground truth for these prompts.
        metrics=("failed", "seconds"),
        shares=_SHARES,
    ),
}


def rows_of(all_done: Sequence[Done]) -> list[dict[str, Any]]:
    """One row for each object at each moment."""
    return convergence.rows_of(all_done, _BY, lambda done: str(done.series.trial.start))


def ends_of(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of the objects' last moments."""
    last = {(row[_BY], row["prompt"], row["seed"]): row for row in rows}
    return list(last.values())


def first_recognized(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Iterations until all views of an object are first recognized, for the objects where they ever are.

    Args:
        rows: rows of one start, with the moments of each object in order.
    """
    first: dict[tuple[str, int], int] = {}
    for row in rows:
        if row["views_right"] == 1.0:
            first.setdefault((row["prompt"], row["seed"]), row["iterations"])
    return list(first.values())


def recognition_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate how soon objects are recognized from all sides, one line per start; Markdown."""
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


def draw_objects(all_done: Sequence[Done]) -> np.ndarray:
    """Show intermediate fronts: one row per prompt, one group of columns per start."""
    prompts = list(dict.fromkeys(one.prompt for done in all_done for one in done.objects))[:_SHOWN]
    rows = [
        [next(list(one.sides[:, 0]) for one in done.objects if one.prompt == prompt) for done in all_done]
        for prompt in prompts
    ]
    shares = ", ".join(f"{share:.0%}" for share in (*all_done[0].series.shares[1:], 1.0))
    headings = [
        f"{done.series.trial.start}: at the start, then after {shares} of the run" for done in all_done
    ]
    return picture_table(rows, prompts, headings)


def make(work: Work, *, settings: Settings | None = None, judges: Judges | None = None) -> Made:
    """Make the objects, and report their quality over time.

    Args:
        work: inputs of the figure.
        settings: settings to use instead of the size's own.
        judges: references for evaluation; None uses those of the Toybox world.

    Raises:
        UserError: Point-E's weights are missing (checked before anything runs), or for the reasons of
            `made_or_read`.
    """
    settings = settings or SIZES[work.size]
    check_plotting()
    parts, _ = made_or_read(settings, work, judges=judges)
    all_done = parts[EQUAL_TIMES]
    rows = rows_of(all_done)
    pictures = {"objects": draw_objects(all_done)}
    if any("views_right" in row for row in rows):
        pictures = {"": convergence.draw_curves(rows, _DRAWN, ("iterations",), _BY), **pictures}
    return Made(rows, _text(settings, all_done, rows), pictures)


FIGURE = Figure(
    title="Starting from Point-E instead of a gray ball",
    source="Beyond the paper, which starts every object from Point-E",
    expected=(
        "Objects that start from Point-E's points are recognized at once, reach the right shape sooner, and "
        "fewer of them have two faces."
    ),
    seconds={"small": 100.0, "full": 2400.0},
    make=make,
    is_timed=True,
)
