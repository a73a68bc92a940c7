"""Line plots as images. Requires matplotlib (requirements-figures.txt)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ge3d_jax.core.extras import load_package

_PANEL_INCHES = (4.4, 3.4)
_LEGEND_INCHES = 0.5
_DOTS_PER_INCH = 100
_BAND_OPACITY = 0.2
_FEW_LABELS = 10
# Fraction of the figure's width that a legend row may take up.
_LEGEND_SHARE = 0.98


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: legend label; curves with the same label have the same color in all panels.
        x, y: coordinates, of equal length.
        error: half the height of the error band at each x; empty for no band.
        dashed: whether the line is dashed.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot of a figure.

    Attributes:
        title: title above the plot.
        x_label, y_label: axis labels.
        lines: curves to plot.
        level: height of a thin horizontal line that marks a known or ideal value; None for no line.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    level: float | None = None


def _matplotlib(module: str) -> Any:
    return load_package(module, wanted_by="A plot", install="-r requirements-figures.txt")


def check_plotting() -> None:
    """Check that plots can be drawn, before any long computation. Raises UserError if not."""
    _matplotlib("matplotlib.figure")


def draw_plot(panels: Sequence[Panel], *, columns: int = 3) -> np.ndarray:
    """Draw panels in rows under a shared legend.

    Args:
        panels: at least one panel.
        columns: panels per row.

    Returns:
        The image, uint8 (H, W, 3).

    Raises:
        UserError: matplotlib is not installed.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width, height = _PANEL_INCHES
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    figure = _matplotlib("matplotlib.figure").Figure(
        figsize=(columns * width, rows * height + _LEGEND_INCHES), dpi=_DOTS_PER_INCH, layout="constrained"
    )
    canvas = _matplotlib("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    # tab10 has only ten colors, but they are easier to tell apart.
    lists = _matplotlib("matplotlib").colormaps
    colors = lists["tab10" if len(labels) <= _FEW_LABELS else "tab20"].colors
    handles: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        for line in panel.lines:
            color = colors[labels.index(line.label) % len(colors)]
            style = "--" if line.dashed else "-"
            (drawn,) = axes.plot(line.x, line.y, style, color=color, label=line.label)
            handles.setdefault(line.label, drawn)
            if len(line.error):
                low, high = np.asarray(line.y) - line.error, np.asarray(line.y) + line.error
                axes.fill_between(line.x, low, high, color=color, alpha=_BAND_OPACITY, linewidth=0)
        if panel.level is not None:
            axes.axhline(panel.level, color="0.5", linewidth=0.8)
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        if all(float(x).is_integer() for line in panel.lines for x in line.x):
            axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    for in_a_row in range(len(handles), 0, -1):
        legend = figure.legend(handles.values(), handles, loc="outside upper center", ncols=in_a_row)
        if legend.get_window_extent().width <= _LEGEND_SHARE * figure.bbox.width:
            break
        if in_a_row > 1:
            legend.remove()
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
