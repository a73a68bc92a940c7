"""Figures 4 and 14: objects by GE3D and ISM side by side, frame by frame, for the same prompts and seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.runs.evaluate import WHITE, true_pictures
from ge3d_jax.runs.figures.base import FIRST_LOOK, Figure, Made, Record, Work, remember
from ge3d_jax.runs.figures.swept import Arm, Plan, load_objects, sweep_arms, told_rows
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.judging_table import table
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.presets import PUBLISHED
from ge3d_jax.viewer.sheet import image_grid, to_uint8
from ge3d_jax.viewer.turntable import Viewpoint, render_around, turntable_azimuths

ARMS = (Arm("ge3d", guidance="ge3d"), Arm("ism", guidance="ism"))
TRUTH = "truth"
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
)
_VIEWPOINT = Viewpoint(size=128)
# Number of prompts in the image; the video shows all of them.
_SHOWN_PROMPTS = 3


@dataclass(frozen=True)
class Settings:
    """Settings of the figure.

    Attributes:
        plan: prompts, seeds, and settings of all objects; those of the first seed are shown.
        frames: number of video frames in a full turn.
        shown: number of frames in the image; divides `frames`.
    """

    plan: Plan
    frames: int = 48
    shown: int = 8


SIZES: Mapping[str, Settings] = {
    "small": Settings(Plan("toybox64", ("a cyan robot",), (0,), FIRST_LOOK), frames=24),
    "full": Settings(
        Plan("toybox_ball", ("a red mushroom", "a cyan robot", "a yellow house", "an orange cat"), (0,))
    ),
    "paper": Settings(
        Plan(
            "paper", (PUBLISHED["paper/radio"][0],), (0,), {"scene.start.prompt": "A radio."}, is_known=False
        ),
        frames=120,
    ),
}


def object_frames(gaussians: Gaussians, frames: int) -> np.ndarray:
    """Render an object on white in a full turn from the front, uint8 (frames, H, W, 3)."""
    return render_around(gaussians, turntable_azimuths(frames), viewpoint=_VIEWPOINT, background=WHITE)


def true_frames(prompt: str, frames: int) -> np.ndarray:
    """Render the ground truth of a prompt from the same cameras, uint8 (frames, H, W, 3)."""
    return to_uint8(true_pictures(prompt, frames, _VIEWPOINT))


# Prompt → name of an arm or TRUTH → frames, uint8 (T, H, W, 3).
Frames = Mapping[str, Mapping[str, np.ndarray]]


def collect_frames(settings: Settings, work: Work) -> dict[str, dict[str, np.ndarray]]:
    """Collect the frames of all prompts, starting with those of the truth if it is known."""
    plan, frames = settings.plan, settings.frames
    made = {arm.name: load_objects(arm, plan, work, plan.seeds[0]) for arm in ARMS}
    collected: dict[str, dict[str, np.ndarray]] = {}
    for prompt in plan.prompts:
        own = {}
        if plan.is_known:
            work.report(f'the truth of "{prompt}"')
            record = remember(
                work.folder / "truths" / slug(prompt),
                {"prompt": prompt, "frames": frames},
                partial(_true_record, prompt, frames),
            )
            own[TRUTH] = record.arrays["frames"]
        for name, objects in made.items():
            own[name] = object_frames(objects[prompt], frames)
        collected[prompt] = own
    return collected


def _true_record(prompt: str, frames: int) -> Record:
    return Record({}, {"frames": true_frames(prompt, frames)})


def picture(collected: Frames, shown: int) -> np.ndarray:
    """Draw some frames of the first prompts: a row for the truth and each loss, columns by azimuth."""
    pictures, labels = [], []
    for prompt in list(collected)[:_SHOWN_PROMPTS]:
        for name, frames in collected[prompt].items():
            stride = len(frames) // shown
            pictures += list(frames[::stride][:shown])
            labels += [f"{name}: {prompt}", *(f"{360 * index // shown}°" for index in range(1, shown))]
    return image_grid(pictures, labels, columns=shown)


def video(collected: Frames) -> np.ndarray:
    """Make the video, uint8 (T, H, W, 3): a row for each prompt, the truth and the losses side by side."""
    columns = len(next(iter(collected.values())))
    count = len(next(iter(next(iter(collected.values())).values())))
    labels = [f"{name}: {prompt}" for prompt, own in collected.items() for name in own]
    return np.stack(
        [
            image_grid(
                [frames[index] for own in collected.values() for frames in own.values()],
                labels,
                columns=columns,
            )
            for index in range(count)
        ]
    )


def compare_frames(settings: Settings, work: Work, gallery: Gallery | None = None) -> Made:
    """Make, judge, and show the objects.

    Args:
        settings: settings of the figure.
        work: where results are kept.
        gallery: see `sweep_arms`.
    """
    swept = sweep_arms(ARMS, settings.plan, work, gallery)
    rows = told_rows(swept, _BY)
    collected = collect_frames(settings, work)
    return Made(
        rows,
        table(rows, _BY, metrics=_METRICS),
        {"": picture(collected, settings.shown)},
        {"": video(collected)},
    )


def make(work: Work) -> Made:
    """Make the figure."""
    return compare_frames(SIZES[work.size], work)


FIGURE = Figure(
    title="GE3D beside ISM, frame by frame",
    source="Figures 4 and 14",
    expected="From all sides, GE3D's objects have more detail, and colors closer to the truth.",
    seconds={"small": 150, "full": 1000},
    make=make,
)
