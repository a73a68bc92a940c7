"""Figure 8: how diverse are objects of different seeds, and of seeds that diverge only during the run?

Seeds that agree at first, including the start, arrive at the same shape; later random draws can only change
what is still undetermined. The paper shows one shape with different textures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.runs.figures.base import FIRST_LOOK, Figure, Made, Work
from ge3d_jax.runs.figures.swept import Arm, Plan, Swept, sweep_arms, told_rows
from ge3d_jax.runs.judging_table import table
from ge3d_jax.training.presets import PUBLISHED
from ge3d_jax.viewer.sheet import image_grid

THROUGHOUT = "other seeds throughout"
_BY = "seeds"
# Factor by which differences are darkened in the image.
_DARKER = 4
_METRICS = (
    "shape_diversity",
    "texture_diversity",
    "views_right",
    "one_front",
    "failed",
    "psnr",
    "overlap",
    "chamfer",
    "saturation",
)


@dataclass(frozen=True)
class Settings:
    """Settings of the figure.

    Attributes:
        plan: prompts, seeds, and settings of all objects.
        shares: fractions of the iterations for which the seeds agree, one for each arm in addition to the one
            with different seeds throughout.
    """

    plan: Plan
    shares: tuple[float, ...]


SIZES: Mapping[str, Settings] = {
    "small": Settings(Plan("toybox64", ("a cyan robot",), (0, 1), FIRST_LOOK), (0.5,)),
    "full": Settings(
        Plan("toybox_ball", ("a red mushroom", "a cyan robot", "a yellow house", "an orange cat"), (0, 1)),
        (0.5,),
    ),
    "paper": Settings(
        Plan("paper/giraffe", (PUBLISHED["paper/giraffe"][0],), (0, 1, 2, 3), is_known=False),
        (0.25, 0.5, 0.75),
    ),
}


def share_name(share: float) -> str:
    """Name in tables of the arm whose seeds agree for that fraction of the iterations."""
    return f"one seed for {100 * share:.0f} %"


def arms(settings: Settings) -> list[Arm]:
    """The arm with different seeds throughout, and those whose seeds diverge from the first seed."""
    first = settings.plan.seeds[0]
    return [Arm(THROUGHOUT, {})] + [
        Arm(share_name(share), {"first_seed": first, "first_seed_share": share}) for share in settings.shares
    ]


def compare_seeds(settings: Settings, work: Work, gallery: Gallery | None = None) -> Made:
    """Make the objects and measure their diversity.

    Args:
        settings: settings of the figure.
        work: where results are kept.
        gallery: see `sweep_arms`.
    """
    swept = sweep_arms(arms(settings), settings.plan, work, gallery)
    rows = told_rows(swept, _BY)
    pictures = {"": draw(settings.plan, swept), "differences": draw_differences(settings.plan, swept)}
    return Made(rows, table(rows, _BY, metrics=_METRICS), pictures)


def draw(plan: Plan, swept: Mapping[str, Swept]) -> np.ndarray:
    """Draw the front views: a row for each prompt and arm, a column for each seed."""
    pictures, labels = [], []
    for index in range(len(plan.prompts)):
        for name, one in swept.items():
            for place, seed in enumerate(plan.seeds):
                pictures.append(one.pictures[index, place, 0])
                labels.append(f"{_short(name)} {seed}")
    columns = len(swept) * len(plan.seeds)
    return image_grid(pictures, labels, columns=columns)


def draw_differences(plan: Plan, swept: Mapping[str, Swept]) -> np.ndarray:
    """Draw how the front views differ from the first seed's, darkened, in the same layout."""
    pictures, labels = [], []
    for index in range(len(plan.prompts)):
        for name, one in swept.items():
            fronts = one.pictures[index, :, 0].astype(int)
            for place, seed in enumerate(plan.seeds[1:], 1):
                difference = np.abs(fronts[place] - fronts[0]).max(axis=-1, keepdims=True)
                gray = 255 - np.minimum(_DARKER * difference, 255)
                pictures.append(np.repeat(gray, 3, axis=-1).astype(np.uint8))
                labels.append(f"{_short(name)} {seed}")
    return image_grid(pictures, labels, columns=len(swept) * (len(plan.seeds) - 1))


def _short(name: str) -> str:
    return "seed" if name == THROUGHOUT else f"{name.removeprefix('one seed for ')}, then"


def make(work: Work) -> Made:
    """Make the figure."""
    return compare_seeds(SIZES[work.size], work)


FIGURE = Figure(
    title="Objects from different seeds, and from seeds that share the first part of the run",
    source="Figure 8",
    expected="Seeds that share the first part of the run end up with nearly the same shape, but different "
    "textures. Seeds that differ throughout also differ in shape.",
    seconds={"small": 110.0, "full": 1700.0},
    make=make,
)
