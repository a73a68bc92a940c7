"""Does exact inversion in every iteration improve generation over plain DDIM inversion?

Denoising does not retrace the noising trajectory of an iteration: DDIM inversion evaluates the network at the
start of each step, and guidance points away from a different text than the one used for noising. With NPI,
guidance points away from exactly that text; direct inversion subtracts, at each node, the error by which
guided denoising toward the source would miss the noising trajectory.

If noising uses the negative prompt, as in the public code, guidance already points away from it, and plain
inversion equals NPI. The figure therefore covers both cases: the preset's negative prompt in both directions,
and noising with the empty prompt combined with a negative prompt for guidance, as in the paper's text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.runs.figures.base import FIRST_LOOK, Figure, Made, Work
from ge3d_jax.runs.figures.swept import Arm, Plan, Swept, sweep_arms, told_rows, view_grid
from ge3d_jax.runs.judging_table import table
from ge3d_jax.training.config import PUBLISHED_NEGATIVE_PROMPT

# Network passes per view and node: one for noising, two for guided denoising, and two more for guided
# denoising toward the source.
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
# The two sides of an object that are shown.
_SHOWN_VIEWS = (0, 3)


@dataclass(frozen=True)
class Settings:
    """Settings of the figure.

    Attributes:
        plan: prompts, seeds, and settings of all objects.
        same: values of `guidance.inversion` to test with the preset's negative prompt in both directions.
        apart: values to test with the empty prompt for noising and `negative_prompt` for guidance.
        negative_prompt: the negative prompt for `apart`.
    """

    plan: Plan
    same: tuple[str, ...] = ("plain", "direct")
    apart: tuple[str, ...] = ("plain", "npi", "direct")
    # A sentence of the Toybox world; the preset's own negative prompt is empty.
    negative_prompt: str = "a grey gift"


SIZES: Mapping[str, Settings] = {
    "small": Settings(Plan("toybox64", ("a cyan robot",), (0,), FIRST_LOOK), apart=()),
    "full": Settings(
        Plan("toybox_ball", ("a red mushroom", "a cyan robot", "a yellow house", "an orange cat"), (0,))
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
    """Name of an inversion in tables."""
    return f"{_LABELS[inversion]}, empty way up" if is_apart else _LABELS[inversion]


def arms(settings: Settings) -> list[Arm]:
    """The inversions with the same text in both directions, and with different texts."""
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
    """Make and judge the objects.

    Args:
        settings: settings of the figure.
        work: where results are kept.
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
    """Draw two sides of the first seed's objects: a row for each prompt, columns by inversion."""

    def label(prompt: str, name: str, view: int) -> str:
        return "" if view else name.removesuffix(" way up")

    return view_grid(plan, swept, _SHOWN_VIEWS, label)


def make(work: Work) -> Made:
    """Make the figure."""
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
