"""Plots of the rasterizer's cost per splat, per pixel and per entry of the tiles' lists. Needs matplotlib."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.render_report import busy_seconds
from benchmarks.rendering import BACKWARD
from ge3d_jax.core.files import atomic_path

_NANOSECONDS = 1e9
_UNITS = {"splats": "ns per splat", "pixels": "ns per pixel", "entries": "ns per (tile, splat) pair"}
_SIZE_INCHES, _DOTS_PER_INCH = (13.0, 4.2), 100


def _lines(axes: Axes, rows: list[dict[str, Any]], horizontal: str, per: str, label: str) -> None:
    """One panel: cost per `per` over `horizontal`, with a line for each value of `label`."""
    for value in dict.fromkeys(row[label] for row in rows):
        chosen = sorted((row for row in rows if row[label] == value), key=lambda row: row[horizontal])
        costs = [_NANOSECONDS * row["cost"] / row[per] for row in chosen]
        axes.plot([row[horizontal] for row in chosen], costs, marker="o", label=f"{value:,} {label}")
    axes.set(xscale="log", yscale="log", xlabel=horizontal, ylabel=_UNITS[per])
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")


def draw(content: dict[str, Any], path: Path) -> None:
    """Plot the cost of forward and backward of one view.

    Args:
        content: from `render_report.report`.
        path: PNG file to write.
    """
    rows = [
        row
        | {
            "cost": busy_seconds(row, content["platform"]),
            "pixels": row["size"] ** 2,
            "px": row["size"],
        }
        for row in content["rows"]
        if row["work"] == BACKWARD and row["views"] == 1 and row["seconds"]
    ]
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    panels = figure.subplots(1, 3)
    _lines(panels[0], rows, "splats", "splats", "px")
    _lines(panels[1], rows, "pixels", "pixels", "splats")
    _lines(panels[2], rows, "entries", "entries", "px")
    figure.suptitle(f"Forward and backward of one view, {content['device']}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DOTS_PER_INCH, format="png")
