"""Figures 5, 6 and 7: object quality over time and iterations, for GE3D with and without DBC."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.tables import markdown_table, number_cell
from ge3d_jax.metrics.bootstrap import mean_and_error
from ge3d_jax.runs.figures.base import Figure, Made, Work
from ge3d_jax.runs.figures.loss_series import Done, Judges
from ge3d_jax.runs.figures.loss_settings import (
    ALL_LOSSES,
    EQUAL_TIMES,
    PAPER_PROMPTS,
    Settings,
    counted_objects,
    made_or_read,
)
from ge3d_jax.runs.judging import METRICS
from ge3d_jax.runs.trials import Trial
from ge3d_jax.viewer.picture_table import picture_table
from ge3d_jax.viewer.plot import Line, Panel, check_plotting, draw_plot

# The paper's ablation: every node has weight 1 throughout.
_WITHOUT_DBC = Trial("ge3d", {"guidance.dbc": "false"})
_METRICS = ("psnr", "views_right", "chamfer", "overlap")
_PROMPTS = ("a green robot", "a blue duck", "an orange television")
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SIZES: Mapping[str, Settings] = {
    "small": Settings(
        preset="toybox64",
        trials=(Trial("ge3d"), _WITHOUT_DBC, Trial("sds")),
        prompts=_PROMPTS[1:2],
        seeds=(0,),
        budget=10.0,
        processes=2,
        metrics=_METRICS,
        shares=(0.25, 0.5, 0.75),
    ),
    "full": Settings(
        preset="toybox_ball",
        trials=(ALL_LOSSES[0], _WITHOUT_DBC, *ALL_LOSSES[1:]),
        prompts=_PROMPTS,
        seeds=(0,),
        budget=60.0,
        processes=2,
        metrics=_METRICS,
        shares=_SHARES,
    ),
    "paper": Settings(
        preset="paper",
        trials=(ALL_LOSSES[0], _WITHOUT_DBC, *ALL_LOSSES[1:]),
        prompts=PAPER_PROMPTS,
        seeds=(0,),
        budget=1800.0,
        processes=1,
        metrics=_METRICS,
        shares=_SHARES,
    ),
}
# The metric of the table, available for every object of the Toybox world.
_LEADING = "psnr"
_LABELS = {_WITHOUT_DBC.label: "ge3d without DBC"}


def label_of(done: Done) -> str:
    """The name of a loss in this figure."""
    label = done.series.trial.label
    return _LABELS.get(label, label)


def rows_of(
    all_done: Sequence[Done], by: str = "loss", name_of: Callable[[Done], str] = label_of
) -> list[dict[str, Any]]:
    """One row for each object at each moment; the column `by` has what `name_of` gives."""
    return [
        {by: name_of(done), "prompt": one.prompt, "seed": one.seed, "moment": index, **numbers}
        for done in all_done
        for one in done.objects
        for index, numbers in enumerate(one.moments)
    ]


def curves(rows: Sequence[Mapping[str, Any]], metric: str, x: str, by: str = "loss") -> list[Line]:
    """Plot lines of a metric's mean over prompts against the mean of `x`, one line per loss.

    Up to two lines have standard error bands; with more lines, only those of GE3D do.

    Args:
        rows: result of `rows_of`.
        metric: a key of METRICS.
        x: column of the horizontal axis, "seconds" or "iterations".
        by: column that distinguishes the lines.
    """
    drawn = []
    names = dict.fromkeys(row[by] for row in rows)
    for name in names:
        own = [row for row in rows if row[by] == name and row.get(metric) is not None]
        points = []
        for moment in sorted({row["moment"] for row in own}):
            at = [row for row in own if row["moment"] == moment]
            mean, error = mean_and_error(_by_prompt(at, metric))
            assert mean is not None
            points.append((float(np.mean([row[x] for row in at])), mean, error or 0.0))
        if points:
            across, means, errors = zip(*points, strict=True)
            # More than two bands obscure each other.
            has_band = any(errors) and (len(names) <= 2 or name.startswith("ge3d"))
            band = errors if has_band else ()
            drawn.append(Line(name, across, means, band, dashed=name in _LABELS.values()))
    return drawn


def _by_prompt(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[float | None]]:
    values: dict[str, list[float | None]] = {}
    for row in rows:
        values.setdefault(row["prompt"], []).append(float(row[metric]))
    return values


def first_reached(line: Line, level: float) -> float | None:
    """The x at which a curve first reaches a level, by linear interpolation; None if it never does."""
    for index, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
        if y >= level:
            if index == 0:
                return x
            before_x, before_y = line.x[index - 1], line.y[index - 1]
            return before_x + (level - before_y) / (y - before_y) * (x - before_x)
    return None


def _text(settings: Settings, all_done: Sequence[Done], rows: Sequence[Mapping[str, Any]]) -> str:
    by_time, by_iteration = curves(rows, _LEADING, "seconds"), curves(rows, _LEADING, "iterations")
    if not by_time:
        return _how(settings, all_done)
    # The level that all of them reach by the end.
    level = min(line.y[-1] for line in by_time)
    lines = [
        {
            "loss": timed.label,
            "iterations": f"{counted.x[-1]:.0f}",
            f"seconds to {level:.1f} dB": number_cell(first_reached(timed, level), 0),
            f"iterations to {level:.1f} dB": number_cell(first_reached(counted, level), 0),
            "PSNR halfway": f"{np.interp(0.5 * timed.x[-1], timed.x, timed.y):.1f}",
            "PSNR at the end": f"{timed.y[-1]:.1f}",
        }
        for timed, counted in zip(by_time, by_iteration, strict=True)
    ]
    return f"{_how(settings, all_done)}\n\n{markdown_table(lines)}"


def _how(settings: Settings, all_done: Sequence[Done]) -> str:
    objects = counted_objects(settings, all_done)
    return (
        f"{objects}, made in about {settings.budget:g} seconds each and judged on the way, at equal shares "
        "of the run. Compiling and judging are not counted. Schedules are stretched to the run, so that what "
        "a curve shows halfway is not what a run of half the time would end with. Bands are standard errors."
    )


def draw_curves(
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    across: Sequence[str] = ("seconds", "iterations"),
    by: str = "loss",
) -> np.ndarray:
    """Draw a column of panels per metric, with a row of panels over each of `across`; see `curves`."""
    panels = [
        Panel("", x, METRICS[metric].label, curves(rows, metric, x, by)) for x in across for metric in metrics
    ]
    return draw_plot(panels, columns=len(metrics))


def draw_objects(all_done: Sequence[Done]) -> np.ndarray:
    """Show the front of each loss's first object at all moments, one row per loss."""
    rows, names = [], []
    for done in all_done:
        first = done.objects[0]
        rows.append([[sides[0]] for sides in first.sides])
        names.append(label_of(done))
    longest = max(len(row) for row in rows)
    shares = [*all_done[0].series.shares, 1.0]
    headings = [f"{share:.0%}" for share in shares[-longest:]]
    # Short runs reach several shares in the same iteration.
    padded = [[[None]] * (longest - len(row)) + row for row in rows]
    return picture_table(padded, names, headings)


def make(
    work: Work,
    *,
    settings: Settings | None = None,
    only_done: bool = False,
    judges: Judges | None = None,
) -> Made:
    """Make the curves.

    Args:
        work: inputs of the figure.
        settings: settings to use instead of the size's own.
        only_done: draw curves of the existing objects without making any.
        judges: references for evaluation; None uses those of the Toybox world.

    Raises:
        UserError: a metric has no curve, or for the reasons of `made_or_read`.
    """
    settings = settings or SIZES[work.size]
    for name in settings.metrics:
        if METRICS[name].of_object is None:
            raise UserError(
                f"The metric {name!r} gives no curve: it takes many objects or needs weights; leave it out."
            )
    check_plotting()
    parts, _ = made_or_read(settings, work, only_done=only_done, judges=judges)
    all_done = parts[EQUAL_TIMES]
    rows = rows_of(all_done)
    pictures = {"": draw_curves(rows, settings.metrics), "objects": draw_objects(all_done)}
    return Made(rows, _text(settings, all_done, rows), pictures)


FIGURE = Figure(
    title="Quality over time and over iterations: GE3D with and without DBC, beside the other losses",
    source="Figures 5, 6 and 7",
    expected=(
        "The paper's claim: GE3D gets good sooner than the other losses, and sooner still with its nodes "
        "balanced over the run."
    ),
    seconds={"small": 150.0, "full": 2400.0},
    make=make,
    is_timed=True,
)
