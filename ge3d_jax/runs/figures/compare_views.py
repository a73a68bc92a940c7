"""Figures 4 and 14: objects of GE3D frame by frame beside those of ISM, from the same prompts and seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.formats.ply import load_ply
from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.runs.evaluate import WHITE
from ge3d_jax.runs.figures.base import Figure, Made, Record, Work, remember
from ge3d_jax.runs.figures.swept import Arm, Plan, sweep_arms, told_rows
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.judging import load_judges
from ge3d_jax.runs.judging_table import table
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.render import render_sentence
from ge3d_jax.training.presets import PUBLISHED
from ge3d_jax.viewer.sheet import image_grid, to_uint8
from ge3d_jax.viewer.turntable import Viewpoint, cameras_around, render_around, turntable_azimuths

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
_SHOWN_EDGE = 128
# Prompts of the picture; the video shows all of them.
_SHOWN_PROMPTS = 3


@dataclass(frozen=True)
class Settings:
    """What is made and shown.

    Attributes:
        plan: prompts, seeds, and settings of all objects; the first seed's are shown.
        frames: of the video, once around.
        shown: of the picture, which divides the frames.
    """

    plan: Plan
    frames: int = 48
    shown: int = 8


SIZES: Mapping[str, Settings] = {
    "small": Settings(Plan("toybox64", ("a yellow duck",), (0,)), frames=24),
    "full": Settings(Plan("toybox", ("a yellow duck", "a blue robot", "a red car", "an orange cat"), (0, 1))),
    "paper": Settings(
        Plan(
            "paper", (PUBLISHED["paper/radio"][0],), (0,), {"scene.start.prompt": "A radio."}, is_known=False
        ),
        frames=120,
    ),
}


def object_frames(work: Work, arm: str, prompt: str, seed: int, frames: int) -> np.ndarray:
    """An object of `sweep_arms` on white, once around from the front, uint8 (frames, H, W, 3)."""
    gaussians = load_ply(work.folder / "objects" / arm / f"{slug(prompt)}-{seed}" / "object.ply")
    return render_around(
        gaussians, turntable_azimuths(frames), viewpoint=Viewpoint(size=_SHOWN_EDGE), background=WHITE
    )


def true_frames(prompt: str, frames: int) -> np.ndarray:
    """What the sentence describes, from the same cameras, uint8 (frames, H, W, 3)."""
    cameras = cameras_around(jnp.asarray(turntable_azimuths(frames)), Viewpoint(size=_SHOWN_EDGE))
    sentence, behind = parse(prompt), jnp.asarray(WHITE)
    views = [jax.tree.map(itemgetter(index), cameras) for index in range(frames)]
    return np.stack(
        [to_uint8(np.asarray(render_sentence(sentence, view, background=behind))) for view in views]
    )


# Frames, uint8 (T, H, W, 3), by prompt and then by the name of an arm, or TRUTH.
Frames = Mapping[str, Mapping[str, np.ndarray]]


def collect_frames(settings: Settings, work: Work) -> dict[str, dict[str, np.ndarray]]:
    """The frames of all prompts, the truth's first where it is known."""
    plan, frames = settings.plan, settings.frames
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
        for arm in ARMS:
            own[arm.name] = object_frames(work, arm.name, prompt, plan.seeds[0], frames)
        collected[prompt] = own
    return collected


def _true_record(prompt: str, frames: int) -> Record:
    return Record({}, {"frames": true_frames(prompt, frames)})


def picture(collected: Frames, shown: int) -> np.ndarray:
    """Some frames of the first prompts: a row for the truth and each loss, columns by azimuth."""
    pictures, labels = [], []
    for prompt in list(collected)[:_SHOWN_PROMPTS]:
        for name, frames in collected[prompt].items():
            stride = len(frames) // shown
            pictures += list(frames[::stride][:shown])
            labels += [f"{name}: {prompt}", *(f"{360 * index // shown}°" for index in range(1, shown))]
    return image_grid(pictures, labels, columns=shown)


def video(collected: Frames) -> np.ndarray:
    """All prompts once around, uint8 (T, H, W, 3): a row each, the truth and the losses side by side."""
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


def compare_frames(settings: Settings, work: Work, gallery: Gallery | None) -> Made:
    """Make the objects, and show and judge them.

    Args:
        settings: what is made.
        work: where it is kept.
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
    """The figure."""
    settings = SIZES[work.size]
    return compare_frames(settings, work, load_judges(work.report) if settings.plan.is_known else None)


FIGURE = Figure(
    title="GE3D frame by frame beside ISM",
    source="Figures 4 and 14",
    expected="From all sides GE3D's objects have more detail, and colors that are nearer to the truth.",
    seconds={"small": 150, "full": 3000},
    make=make,
)
