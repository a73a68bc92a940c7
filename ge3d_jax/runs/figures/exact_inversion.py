"""Does an exact inversion in every iteration make generation better than plain DDIM inversion?

The way up of an iteration is not undone by its way down: DDIM inversion asks the network at the start of
each step, and guidance leads away from another text than the way up followed. NPI leads guidance away from
that very text; direct inversion takes off at each node what a guided way down to it would miss the way up by.

Where the way up follows the negative prompt, as in the public code, guidance leads away from it already:
plain is NPI there. So the figure has both cases, the preset's negative prompt on both ways, and an empty way
up beside a negative prompt that guidance leads away from, as in the paper's text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.runs.figures.base import Figure, Made, Work
from ge3d_jax.runs.figures.swept import Arm, Plan, Swept, sweep_arms, told_rows, view_grid
from ge3d_jax.runs.judging_table import table
from ge3d_jax.training.config import PUBLISHED_NEGATIVE_PROMPT

# Passes of a view through the network at each node: one on the way up, two of the guided way down, and two
# more of the guided way down to the source.
PASSES = {"plain": 3, "npi": 3, "direct": 5}
_LABELS = {"plain": "plain DDIM", "npi": "NPI", "direct": "direct inversion"}
_BY = "inversion"
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
    "contrast",
    "shape_diversity",
    "texture_diversity",
    "shrunken_kid",
)
# Two sides of an object are shown.
_SHOWN_VIEWS = (0, 3)


@dataclass(frozen=True)
class Settings:
    """What is made.

    Attributes:
        plan: prompts, seeds, and settings of all objects.
        same: values of `guidance.inversion` where both ways have the preset's negative prompt.
        apart: the same where the way up is empty and guidance leads away from `negative_prompt`.
        negative_prompt: that.
    """

    plan: Plan
    same: tuple[str, ...] = ("plain", "direct")
    apart: tuple[str, ...] = ("plain", "npi", "direct")
    # Of the Toybox world; the preset's own is empty.
    negative_prompt: str = "a grey gift"


SIZES: Mapping[str, Settings] = {
    "small": Settings(Plan("toybox64", ("a red mushroom",), (0,), {"iterations": 60}), apart=()),
    "full": Settings(
        Plan("toybox", ("a red mushroom", "a cyan robot", "a yellow house", "an orange cat"), (0,))
    ),
    "paper": Settings(
        Plan(
            "paper",
            (
                "A decorative lantern, red, warm lighting, 8K, HDR",
                "A giraffe with a scarf, realistic, 8K, HDR.",
            ),
            (0, 1),
            is_known=False,
        ),
        negative_prompt=PUBLISHED_NEGATIVE_PROMPT,
    ),
}


def arm_name(inversion: str, *, is_apart: bool) -> str:
    """How tables name the objects of an inversion."""
    return f"{_LABELS[inversion]}, empty way up" if is_apart else _LABELS[inversion]


def arms(settings: Settings) -> list[Arm]:
    """The inversions with one text on both ways, and with two."""
    apart = {
        "guidance.noising_prompt": "empty",
        "prompts.negative_prompt": settings.negative_prompt,
    }
    same: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in settings.same]
    return [
        Arm(arm_name(name, is_apart=bool(texts)), {"guidance.inversion": name, **texts})
        for name, texts in [*same, *((name, apart) for name in settings.apart)]
    ]


def compare_inversions(settings: Settings, work: Work, gallery: Gallery | None = None) -> Made:
    """Make the objects, and tell how good they are.

    Args:
        settings: what is made.
        work: where it is kept.
        gallery: see `sweep_arms`.
    """
    compared = arms(settings)
    swept = sweep_arms(compared, settings.plan, work, gallery)
    passes = {arm.name: {"passes": PASSES[arm.overrides["guidance.inversion"]]} for arm in compared}
    rows = told_rows(swept, _BY, passes)
    costs = ", ".join(f"{_LABELS[name]} {PASSES[name]}" for name in PASSES)
    text = table(rows, _BY, metrics=_METRICS)
    if settings.apart:
        text += f'\n"Empty way up": guidance leads away from "{settings.negative_prompt}" instead.\n'
    text += f"\nPasses of a view through the network at each node: {costs}.\n"
    return Made(rows, text, {"": draw(settings.plan, swept)})


def draw(plan: Plan, swept: Mapping[str, Swept]) -> np.ndarray:
    """Two sides of the objects with the first seed: a row for each prompt, columns by inversion."""

    def label(prompt: str, name: str, view: int) -> str:
        return "" if view else name.removesuffix(" way up")

    return view_grid(plan, swept, _SHOWN_VIEWS, label)


def make(work: Work) -> Made:
    """The figure."""
    return compare_inversions(SIZES[work.size], work)


FIGURE = Figure(
    title="An exact inversion in every iteration",
    source="Beyond the paper: the open question of its future work",
    expected=(
        "A way down that does not undo the way up changes the object where no word asks for it. An exact "
        "inversion avoids that, so objects may come closer to the truth, at the price of more passes "
        "through the network."
    ),
    seconds={"small": 80.0, "full": 2000.0},
    make=make,
)
