"""Figure 9: how far GE3D's nodes reach and how long its jumps are, without balancing the nodes.

Both are given for the first iteration and are annealed over the run as in the preset. There are as many nodes
as needed to reach that far, so a path of long jumps is cheaper.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ge3d_jax.core.tables import markdown_table, number_cell
from ge3d_jax.guidance.trajectories import Nodes
from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.runs.figures.base import FIRST_LOOK, Figure, Made, Work
from ge3d_jax.runs.figures.swept import Arm, Plan, Swept, ge3d_of, sweep_arms, told_rows
from ge3d_jax.runs.judging import METRICS
from ge3d_jax.runs.judging_table import estimates, table
from ge3d_jax.training.presets import PUBLISHED, configured
from ge3d_jax.viewer.sheet import image_grid

_BY = "nodes"
_METRICS = (
    "views_right",
    "one_front",
    "failed",
    "psnr",
    "overlap",
    "chamfer",
    "sharpness",
    "saturation",
    "contrast",
    "shrunken_fid",
)
# Metrics with a grid of their own.
_IN_GRIDS = ("views_right", "psnr", "sharpness")


@dataclass(frozen=True)
class Settings:
    """Settings of the figure.

    Attributes:
        plan: prompts, seeds, and settings of all objects.
        farthest: upper bounds of the nodes' times in the first iteration.
        jumps: upper bounds of the jumps in the first iteration.
        shown: number of prompts in the image.
    """

    plan: Plan
    farthest: tuple[int, ...]
    jumps: tuple[int, ...]
    shown: int = 3


SIZES: Mapping[str, Settings] = {
    "small": Settings(Plan("toybox64", ("a cyan robot",), (0,), FIRST_LOOK), (300, 600), (120, 240)),
    "full": Settings(
        Plan("toybox64", ("a red mushroom", "a cyan robot", "a yellow house", "an orange cat"), (0,)),
        (300, 600, 900),
        (60, 120, 240),
    ),
    "paper": Settings(
        Plan("paper/giraffe", (PUBLISHED["paper/giraffe"][0],), (0,), is_known=False),
        (240, 480, 720, 960),
        (40, 80, 160),
    ),
}


def scaled_nodes(usual: Nodes, farthest: int, jump: int) -> Nodes:
    """Scale nodes to another farthest time and other jumps, annealed in the same proportions.

    Args:
        usual: the nodes to scale.
        farthest: initial value of `max_step`.
        jump: initial value of `jump_max`.

    Returns:
        The scaled nodes, as many as possible.

    Raises:
        UserError: a jump would exceed the farthest time.
    """

    def scaled(pair: tuple[int, int], factor: float) -> tuple[int, int]:
        begin, end = (max(1, round(factor * value)) for value in pair)
        return begin, end

    by_jump = jump / usual.jump_max[0]
    jump_max, jump_min = scaled(usual.jump_max, by_jump), scaled(usual.jump_min, by_jump)
    max_step = scaled(usual.max_step, farthest / usual.max_step[0])
    # The last node lies below the bound, and no jump is shorter than the smallest.
    count = max(1, *((bound - 1) // least for bound, least in zip(max_step, jump_min, strict=True)))
    return Nodes(count=count, jump_max=jump_max, jump_min=jump_min, max_step=max_step)


def arm_name(farthest: int, jump: int) -> str:
    """Name of a grid cell in tables."""
    return f"to {farthest} by {jump}"


def cells(settings: Settings) -> dict[str, tuple[int, int]]:
    """The grid: name of the arm → farthest time and jump."""
    pairs = itertools.product(settings.farthest, settings.jumps)
    return {arm_name(*pair): pair for pair in pairs}


def arms(settings: Settings) -> list[Arm]:
    """An arm for each cell. Raises UserError if the nodes are invalid."""
    usual = ge3d_of(configured(settings.plan.preset, overrides=settings.plan.overrides)).nodes

    def overrides(farthest: int, jump: int) -> dict[str, object]:
        nodes = scaled_nodes(usual, farthest, jump)
        names = ("count", "jump_max", "jump_min", "max_step")
        return {"guidance.dbc": False} | {f"guidance.nodes.{name}": getattr(nodes, name) for name in names}

    return [Arm(name, overrides(*pair)) for name, pair in cells(settings).items()]


def compare_nodes(settings: Settings, work: Work, gallery: Gallery | None = None) -> Made:
    """Make and judge the objects.

    Args:
        settings: settings of the figure.
        work: where results are kept.
        gallery: see `sweep_arms`.
    """
    grid, swept = cells(settings), sweep_arms(arms(settings), settings.plan, work, gallery)
    told = {name: {"farthest": farthest, "jump": jump} for name, (farthest, jump) in grid.items()}
    rows = told_rows(swept, _BY, told)
    tables = [table(rows, _BY, metrics=_METRICS)]
    if settings.plan.is_known:
        tables += [grid_table(rows, settings, name) for name in _IN_GRIDS]
    return Made(rows, "\n".join(tables), {"": draw(settings, swept)})


def grid_table(rows: list[dict[str, object]], settings: Settings, metric: str) -> str:
    """A table of a metric over the grid: a row for each farthest time, a column for each jump."""
    found = estimates(rows, _BY, [metric])
    digits = METRICS[metric].digits

    def cell(farthest: int, jump: int) -> str:
        return number_cell(found[arm_name(farthest, jump)][metric][0], digits)

    lines = [
        {METRICS[metric].label: f"to {farthest}"}
        | {f"jumps below {jump}": cell(farthest, jump) for jump in settings.jumps}
        for farthest in settings.farthest
    ]
    return markdown_table(lines)


def draw(settings: Settings, swept: Mapping[str, Swept]) -> np.ndarray:
    """Draw the first seed's front views: a row for each farthest time, a column for each prompt and jump."""
    pictures, labels = [], []
    shown = settings.plan.prompts[: settings.shown]
    for farthest in settings.farthest:
        for index in range(len(shown)):
            for jump in settings.jumps:
                pictures.append(swept[arm_name(farthest, jump)].pictures[index, 0, 0])
                labels.append(arm_name(farthest, jump))
    return image_grid(pictures, labels, columns=len(shown) * len(settings.jumps))


def make(work: Work) -> Made:
    """Make the figure."""
    return compare_nodes(SIZES[work.size], work)


FIGURE = Figure(
    title="How far the nodes reach and how long the jumps are, without balancing the nodes",
    source="Figure 9",
    expected="Nodes that reach only low noise change too little, so the shape stays wrong. Short jumps "
    "preserve more detail than long ones, but take longer.",
    seconds={"small": 140.0, "full": 1900.0},
    make=make,
)
