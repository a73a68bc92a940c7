"""Tables of judged objects: mean ± standard error over prompts, with a row for each loss or other setting."""

from collections.abc import Mapping, Sequence
from typing import Any

from ge3d_jax.core.tables import markdown_table, number_cell
from ge3d_jax.metrics.bootstrap import mean_and_error
from ge3d_jax.runs.judging import METRICS, Estimate, Metric, check_metrics

_ARROWS = {"higher": " ↑", "lower": " ↓", "one": " → 1", None: ""}


def estimates(
    rows: Sequence[Mapping[str, Any]], by: str, metrics: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """Means and standard errors of each group of rows.

    Args:
        rows: rows of objects, with `by`, "prompt", and the numbers of `judge_object`; and rows of whole
            groups, without "prompt", with `by` and the numbers of `judge_group`.
        by: the key that distinguishes groups, e.g. "loss".
        metrics: names in METRICS.

    Returns:
        Group → metric → mean and standard error; None where there is no value.

    Raises:
        UserError: a metric does not exist.
    """
    check_metrics(metrics)
    groups = dict.fromkeys(str(row[by]) for row in rows)
    return {
        group: {name: _estimate([row for row in rows if str(row[by]) == group], name) for name in metrics}
        for group in groups
    }


def _estimate(rows: Sequence[Mapping[str, Any]], name: str) -> Estimate:
    known = [row for row in rows if row.get(name) is not None]
    for row in known:
        if "prompt" not in row:
            return row[name], row.get(f"{name}_error")
    values: dict[str, list[float | None]] = {}
    for row in known:
        values.setdefault(row["prompt"], []).append(float(row[name]))
    return mean_and_error(values)


def _cell(metric: Metric, estimate: Estimate, *, is_best: bool) -> str:
    mean, error = estimate
    text = number_cell(mean, metric.digits, error)
    number, sign, rest = text.partition(" ± ")
    return f"**{number}**{sign}{rest}" if is_best else text


def _best(metric: Metric, means: Sequence[float | None]) -> float | None:
    """The best of several means, rounded as in the table; None if all rounded means are equal."""
    known = [round(mean, metric.digits) for mean in means if mean is not None]
    if metric.better is None or len(set(known)) < 2:
        return None
    order = {"higher": lambda mean: -mean, "lower": lambda mean: mean, "one": lambda mean: abs(mean - 1.0)}
    return min(known, key=order[metric.better])


def table(rows: Sequence[Mapping[str, Any]], by: str = "loss", *, metrics: Sequence[str]) -> str:
    """A Markdown table with a row for each group and a column for each metric: mean ± standard error.

    The best mean of a column is bold, regardless of the errors. Arrows show what is best: ↑ the highest,
    ↓ the lowest, → 1 the closest to 1.

    Args:
        rows: as for `estimates`.
        by: the key that distinguishes groups; the first column.
        metrics: names in METRICS; metrics without a value in any group are left out.

    Raises:
        UserError: a metric does not exist.
    """
    found = estimates(rows, by, metrics)
    lines = {group: {by: group} for group in found}
    for name in metrics:
        metric, means = METRICS[name], [own[name][0] for own in found.values()]
        if all(mean is None for mean in means):
            continue
        best = _best(metric, means)
        for group, own in found.items():
            mean = own[name][0]
            is_best = mean is not None and round(mean, metric.digits) == best
            lines[group][metric.label + _ARROWS[metric.better]] = _cell(metric, own[name], is_best=is_best)
    return markdown_table(list(lines.values()))
