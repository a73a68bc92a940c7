"""Section 8.1: how the nodes are balanced over a run, and each node's resulting share of the gradient.

Symbols: k, iteration; n, number of nodes; ω_i(k), weight of node i; d_i = x_{t_i} − x̂_{t_i}. The share of
node i is ‖ω_i·d_i‖/Σ_j ‖ω_j·d_j‖, with norms over all views of an iteration; without balancing, every ω_i
is 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ge3d_jax.core.random import Draws
from ge3d_jax.core.tables import markdown_table
from ge3d_jax.guidance.base import Progress
from ge3d_jax.metrics.bootstrap import mean_and_error
from ge3d_jax.runs.figures.base import FIRST_LOOK, Figure, Made, Record, Work
from ge3d_jax.runs.figures.node_trajectories import find_trajectories, loss_of
from ge3d_jax.runs.figures.observed_runs import ObservedRuns
from ge3d_jax.runs.folder import slug
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted
from ge3d_jax.training.presets import PUBLISHED
from ge3d_jax.training.state import TrainState
from ge3d_jax.viewer.plot import Line, Panel, check_plotting, draw_plot

# Number of points of a weight curve.
_POINTS = 101
# The parts of a run in the table.
_PARTS = ("first", "middle", "last")


@dataclass(frozen=True)
class Settings(ObservedRuns):
    """The runs, with enough looks for a curve."""

    looks: int = 46


SIZES: Mapping[str, Settings] = {
    "small": Settings("toybox64", ("a red mushroom",), looks=26, overrides=FIRST_LOOK),
    "full": Settings(
        "toybox_ball", ("a red mushroom", "a yellow duck", "a blue robot", "a green house", "a pink pig")
    ),
    "paper": Settings("paper/radio", (PUBLISHED["paper/radio"][0],), looks=61),
}


def shares(differences: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of each node in the gradient, (n,), summing to 1; all 0 if nothing differs.

    Args:
        differences: (n, ...), d_i.
        weights: (n,), ω_i.
    """
    norms = weights * np.sqrt(np.sum(differences**2, axis=tuple(range(1, differences.ndim))))
    return norms / max(float(norms.sum()), np.finfo(np.float64).tiny)


def look(task: Distillation, state: TrainState, context: Prompted, drawn: Draws) -> Record:
    """Record an iteration: lists over the nodes, except for `active`."""
    found = find_trajectories(task, state, context, drawn)
    differences = found.differences.astype(np.float64)
    plain = (np.arange(len(found.weights)) < found.active).astype(np.float64)
    return Record(
        {
            "active": found.active,
            "times": found.times[:-1].tolist(),
            "weights": found.weights.tolist(),
            "shares": shares(differences, found.weights.astype(np.float64)).tolist(),
            "plain_shares": shares(differences, plain).tolist(),
        }
    )


def weight_curves(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """ω_i over a run with all nodes active: the iterations (K,) and the weights (K, n)."""
    loss, total = loss_of(config), config.iterations
    iterations = np.linspace(0, total, min(_POINTS, total + 1)).round().astype(int)
    count = loss.nodes.count
    weights = [np.asarray(loss.weights(Progress(int(k), total), count)) for k in iterations]  # type: ignore[arg-type]
    return iterations, np.stack(weights)


def rows_of(records: Mapping[str, Mapping[int, Record]]) -> list[dict[str, Any]]:
    """A row for each look and node: means over the prompts, and standard errors.

    Args:
        records: prompt → number of iterations done → record.
    """
    first = next(iter(records.values()))
    rows = []
    for done, record in first.items():
        for node in range(len(record.numbers["weights"])):
            row: dict[str, Any] = {"iteration": done, "node": node}
            for column, name in (
                ("time", "times"), ("weight", "weights"), ("share", "shares"), ("plain_share", "plain_shares")
            ):  # fmt: skip
                by_prompt = {
                    prompt: [own[done].numbers[name][node] if node < own[done].numbers["active"] else None]
                    for prompt, own in records.items()
                }
                mean, error = mean_and_error(by_prompt)
                row[column] = mean
                if column in ("share", "plain_share"):
                    row[f"{column}_error"] = error
            rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with the mean share of each node in the first, middle, and last third of the run."""
    last = max(row["iteration"] for row in rows)

    def mean(column: str, node: int, part: int) -> str:
        values = [
            row[column]
            for row in rows
            if row["node"] == node
            and row[column] is not None
            and min(int(3 * (row["iteration"] - 1) / last), 2) == part
        ]
        return f"{100 * np.mean(values):.0f} %" if values else "–"

    lines = []
    for node in sorted({row["node"] for row in rows}):
        line = {"node": str(node)}
        for column, label in (("share", "balanced"), ("plain_share", "not balanced")):
            for part, name in enumerate(_PARTS):
                line[f"{label}, {name} third"] = mean(column, node, part)
        lines.append(line)
    return markdown_table(lines)


def picture(config: Config, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Plot the weights over the run, and each node's share with and without them."""
    iterations, weights = weight_curves(config)
    nodes = range(weights.shape[1])
    panels = [
        Panel(
            "weights ω",
            "iteration",
            "",
            [Line(_name(node), iterations.tolist(), weights[:, node].tolist()) for node in nodes],
        )
    ]
    for column, title in (
        ("share", "share of the gradient"),
        ("plain_share", "share where nodes are not balanced"),
    ):
        lines = []
        for node in nodes:
            own = [row for row in rows if row["node"] == node and row[column] is not None]
            errors = [row[f"{column}_error"] for row in own]
            lines.append(
                Line(
                    _name(node),
                    [row["iteration"] for row in own],
                    [row[column] for row in own],
                    () if None in errors else errors,
                )
            )
        level = 1.0 / weights.shape[1] if column == "plain_share" else None
        panels.append(Panel(title, "iteration", "", lines, level))
    return draw_plot(panels)


def _name(node: int) -> str:
    return f"node {node}" + (" (finest)" if node == 0 else "")


def make(work: Work) -> Made:
    """Make the figure."""
    return make_of(SIZES[work.size], work)


def make_of(settings: Settings, work: Work) -> Made:
    """Make the figure with any settings. Raises UserError as `generate` does."""
    check_plotting()
    runs = {prompt: settings.run(prompt) for prompt in settings.prompts}
    for run in runs.values():
        loss_of(run.config)
        run.check(work.model)
    records = {}
    for prompt, run in runs.items():
        work.report(f'"{prompt}"')
        records[prompt] = run.observe(
            work.folder / slug(prompt), look, about={}, model=work.model, report=work.report
        )
    rows = rows_of(records)
    config = runs[settings.prompts[0]].config
    text = f"Share of each node in the gradient, mean:\n\n{table(rows)}"
    return Made(rows, text, {"": picture(config, rows)})


FIGURE = Figure(
    title="How the nodes are balanced over a run",
    source="Section 8.1",
    expected="The coarsest node has most of the gradient at first, and the finest in the end. Without "
    "balancing, all nodes have nearly equal shares throughout, the finest a little more toward the end.",
    seconds={"small": 75, "full": 720},
    make=make,
)
