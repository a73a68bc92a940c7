"""Figure 11: GE3D compared with only the end of its path, x̂_0, with the same settings and with its own."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ge3d_jax.guidance.x0 import X0
from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.runs.figures.base import FIRST_LOOK, Figure, Made, Work
from ge3d_jax.runs.figures.swept import Arm, Plan, Swept, ge3d_of, sweep_arms, told_rows, view_grid
from ge3d_jax.runs.judging_table import table
from ge3d_jax.training.config import Config
from ge3d_jax.training.presets import PUBLISHED, configured

GE3D, ONLY_X0, OWN = "ge3d", "x0", "x0 with its own settings"
_BY = "loss"
_METRICS = (
    "views_right",
    "one_front",
    "multi_faced",
    "failed",
    "psnr",
    "ssim",
    "overlap",
    "chamfer",
    "sharpness",
    "saturation",
    "contrast",
    "shape_diversity",
    "texture_diversity",
    "shrunken_fid",
)
# The front, and the view between it and the left side.
_SHOWN_VIEWS = (0, 1)


@dataclass(frozen=True)
class Settings:
    """Settings of the figure.

    Attributes:
        plan: prompts, seeds, and settings of all objects.
        has_own: whether there is a third arm, with the preset's settings for x0.
    """

    plan: Plan
    has_own: bool


SIZES: Mapping[str, Settings] = {
    "small": Settings(Plan("toybox64", ("a cyan robot",), (0,), FIRST_LOOK), has_own=False),
    "full": Settings(
        Plan("toybox_ball", ("a red mushroom", "a cyan robot", "a yellow house", "an orange cat"), (0,)),
        has_own=True,
    ),
    "paper": Settings(
        Plan("paper/radio", (PUBLISHED["paper/radio"][0],), (0,), is_known=False),
        has_own=False,
    ),
}


def only_the_end(config: Config) -> dict[str, Any]:
    """The overrides, by dotted name, that replace GE3D by x0 and keep all settings that both have."""
    ge3d = ge3d_of(config)
    names = [field.name for field in dataclasses.fields(X0) if field.name != "nodes"]
    return {
        "guidance.kind": "x0",
        **{f"guidance.{name}": getattr(ge3d, name) for name in names},
        **{f"guidance.nodes.{name}": value for name, value in dataclasses.asdict(ge3d.nodes).items()},
    }


def arms(settings: Settings) -> list[Arm]:
    """The arms: GE3D, and the end of its path alone."""
    plan = settings.plan
    usual = configured(plan.preset, overrides=plan.overrides)
    own = [Arm(OWN, {}, guidance="x0")] if settings.has_own else []
    return [Arm(GE3D, {}), Arm(ONLY_X0, only_the_end(usual)), *own]


def compare_ends(settings: Settings, work: Work, gallery: Gallery | None = None) -> Made:
    """Make and judge the objects.

    Args:
        settings: settings of the figure.
        work: where results are kept.
        gallery: see `sweep_arms`.
    """
    swept = sweep_arms(arms(settings), settings.plan, work, gallery)
    rows = told_rows(swept, _BY)
    return Made(rows, table(rows, _BY, metrics=_METRICS), {"": draw(settings.plan, swept)})


def draw(plan: Plan, swept: Mapping[str, Swept]) -> np.ndarray:
    """Draw two views of the first seed's objects: a row for each prompt, columns by loss."""

    def label(prompt: str, name: str, view: int) -> str:
        if not view:
            return prompt
        return "x0, own" if name == OWN else name

    return view_grid(plan, swept, _SHOWN_VIEWS, label)


def make(work: Work) -> Made:
    """Make the figure."""
    return compare_ends(SIZES[work.size], work)


FIGURE = Figure(
    title="GE3D beside the end of its path alone",
    source="Figure 11",
    expected="With the clean end x̂_0 alone, the noisier nodes are not matched: surfaces are flatter and "
    "have less detail, or shapes are less accurate.",
    seconds={"small": 90.0, "full": 1100.0},
    make=make,
)
