"""Tables of judged objects: mean ± standard error over prompts, a line for each loss or other setting."""

from collections.abc import Mapping, Sequence
from typing import Any

from ge3d_jax.metrics.bootstrap import mean_and_error
from ge3d_jax.runs.judging import METRICS, Estimate, Metric


def estimates(
    rows: Sequence[Mapping[str, Any]], by: str, metrics: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """Means and standard errors of each group of rows.

    Args:
        rows: of objects, with `by`, "prompt" and the numbers of `judge_object`; and of whole groups, without
            "prompt", with `by` and the numbers of `judge_group`.
        by: what tells groups apart, as "loss".
        metrics: names in METRICS.

    Returns:
        By group and metric the mean and its error; None where there is no number.
    """
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


def _cell(metric: Metric, estimate: Estimate) -> str:
    mean, error = estimate
    if mean is None:
        return "–"
    text = f"{mean:.{metric.digits}f}"
    return text if error is None else f"{text} ± {error:.{metric.digits}f}"


def table(rows: Sequence[Mapping[str, Any]], by: str = "loss", *, metrics: Sequence[str]) -> str:
    """A table in Markdown: a line for each group, a column for each metric, mean ± standard error.

    Args:
        rows: as for `estimates`.
        by: what tells groups apart; the first column.
        metrics: names in METRICS; one that no group has a number of is left out.
    """
    found = estimates(rows, by, metrics)
    shown = [name for name in metrics if any(group[name][0] is not None for group in found.values())]
    lines = [[by, *(METRICS[name].label for name in shown)], ["---"] * (len(shown) + 1)]
    lines += [[group, *(_cell(METRICS[name], own[name]) for name in shown)] for group, own in found.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
