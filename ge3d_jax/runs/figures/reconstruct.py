"""Section 7.2: the effect of the reconstruction stage after increasing numbers of iterations.

One run is inspected several times. Each time the stage is performed from the run's current state, after which
the run continues as if nothing had happened. The result is that of a run that ends there with the stage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.core.tables import counted
from ge3d_jax.metrics.likeness import Views
from ge3d_jax.metrics.recognition import Gallery, load_gallery
from ge3d_jax.runs.asked import bundled_model
from ge3d_jax.runs.attempts import Attempts
from ge3d_jax.runs.figures.base import FIRST_LOOK, Figure, Made, Record, Work
from ge3d_jax.runs.figures.observed_runs import ObservedRuns
from ge3d_jax.runs.folder import prepare_folder, slug
from ge3d_jax.runs.judged import see, see_truths
from ge3d_jax.runs.judging import METRICS, judge_object
from ge3d_jax.runs.judging_table import estimates, table
from ge3d_jax.runs.reconstruct import read_numbers, reconstruct
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.distillation import Distillation, Prompted
from ge3d_jax.training.iterations import RunResult
from ge3d_jax.training.presets import PUBLISHED
from ge3d_jax.training.state import TrainState
from ge3d_jax.viewer.plot import Line, Panel, check_plotting, draw_plot
from ge3d_jax.viewer.sheet import image_grid, to_uint8
from ge3d_jax.viewer.turntable import Viewpoint, render_around

STAGES = ("before", "after")
_METRICS = ("views_right", "psnr", "ssim", "overlap", "chamfer", "sharpness", "saturation", "contrast")
_PLOTTED = ("psnr", "chamfer", "sharpness", "saturation")
_SHOWN_AZIMUTH, _SHOWN_EDGE = np.deg2rad(45.0), 128

# (prompt, seed, object) → metrics of the object
Judge = Callable[[str, int, Gaussians], Mapping[str, Any]]


@dataclass(frozen=True)
class Settings(ObservedRuns):
    """The runs; the stage is performed at each look."""

    @property
    def is_known(self) -> bool:
        """Whether the prompts are sentences of the Toybox world, whose truth is known."""
        return bundled_model(self.preset) is not None


SIZES: Mapping[str, Settings] = {
    "small": Settings(
        "toybox64", ("a yellow duck",), looks=3, overrides={**FIRST_LOOK, "reconstruction.passes": 20}
    ),
    "full": Settings("toybox_ball", ("a yellow duck", "a blue robot"), looks=6),
    "paper": Settings("paper/radio", (PUBLISHED["paper/radio"][0],), looks=6),
}


def shown_from_one_side(gaussians: Gaussians) -> np.ndarray:
    """Render one side of an object on white, uint8 (H, W, 3)."""
    viewpoint = Viewpoint(size=_SHOWN_EDGE)
    return render_around(gaussians, [float(_SHOWN_AZIMUTH)], viewpoint=viewpoint)[0]


def go_through_stage(
    folder: Path,
    prompt: str,
    seed: int,
    judge: Judge,
    task: Distillation,
    state: TrainState,
    context: Prompted,
    drawn: Draws,
) -> Record:
    """Perform the stage from a run's current state.

    Args:
        folder: folder of the stages.
        prompt, seed: prompt and seed of the run.
        judge: computes the metrics of an object.
        task, state, context, drawn: see `observed_runs.Look`.

    Returns:
        A record. Numbers, by STAGES: the metrics of `judge`, plus `fitted` and `held_out`, the PSNR to the
        edited images in decibels. Arrays, by STAGES: an image.

    Raises:
        KeyboardInterrupt: the user stopped it.
    """
    done = int(state.iteration)
    begun = RunResult(state, done, task, interrupted=False, diverged=False)
    own = prepare_folder(folder / f"stage-{done:05d}")
    attempts = Attempts()
    ended = reconstruct(own, task, context, begun, attempts, progress=False)
    if ended.interrupted:
        raise KeyboardInterrupt
    if attempts.failed:
        raise UserError(f"{own}: {' '.join(attempts.failed)}")
    edits = read_numbers(own)["psnr"]
    objects = dict(zip(STAGES, (begun.object, ended.object), strict=True))
    numbers = {
        name: {
            **judge(prompt, seed, gaussians),
            "fitted": edits["fitted"][name],
            "held_out": edits["held_out"][name],
        }
        for name, gaussians in objects.items()
    }
    return Record(numbers, {name: shown_from_one_side(gaussians) for name, gaussians in objects.items()})


def judge_by_truth(truths: Mapping[str, Views], gallery: Gallery) -> Judge:
    """A judge for objects whose truth is known."""

    def judge(prompt: str, seed: int, gaussians: Gaussians) -> dict[str, Any]:
        return judge_object(see(prompt, seed, gaussians, truth=truths[prompt]), gallery, metrics=_METRICS)

    return judge


def _named(done: int, stage: str) -> str:
    return f"{counted(done, 'iteration')}, {stage}"


def rows_of(records: Mapping[str, Mapping[int, Record]]) -> list[dict[str, Any]]:
    """A row for each prompt, number of iterations, and stage (before or after)."""
    return [
        {
            "run": _named(done, stage),
            "iterations": done,
            "stage": stage,
            "prompt": prompt,
            **record.numbers[stage],
        }
        for prompt, own in records.items()
        for done, record in own.items()
        for stage in STAGES
    ]


def agreement(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on how well the held-out views match their own edits, before and after the stage."""
    means = [np.mean([row["held_out"] for row in rows if row["stage"] == stage]) for stage in STAGES]
    return (
        f"Views that are not fitted agree with what the model makes of them to {means[0]:.1f} dB before the "
        f"stage and {means[1]:.1f} dB after it, mean over all."
    )


def curves(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Plot some metrics against the iterations, before and after the stage."""
    found = estimates(rows, "run", _PLOTTED)
    iterations = sorted({row["iterations"] for row in rows})
    panels = []
    for metric in _PLOTTED:
        lines = []
        for stage in STAGES:
            values = [found[_named(done, stage)][metric] for done in iterations]
            errors = [error for _, error in values]
            means = [np.nan if mean is None else mean for mean, _ in values]
            lines.append(
                Line(f"{stage} the stage", iterations, means, () if None in errors else errors)  # type: ignore[arg-type]
            )
        level = 1.0 if METRICS[metric].better == "one" else None
        panels.append(Panel(METRICS[metric].label, "iterations before the stage", "", lines, level))
    return draw_plot(panels, columns=2)


def picture(records: Mapping[str, Mapping[int, Record]], truths: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw rows for before and after the stage of each prompt; columns by iterations, then the truth."""
    shown, labels = [], []
    for prompt, own in records.items():
        for stage in STAGES:
            shown += [record.arrays[stage] for record in own.values()]
            labels += [f"{stage}, {done}" for done in own]
            if prompt in truths:
                shown.append(truths[prompt])
                labels.append("truth")
    return image_grid(shown, labels, columns=len(shown) // (len(STAGES) * len(records)))


def make(work: Work) -> Made:
    """Make the figure."""
    return make_of(SIZES[work.size], work)


def make_of(settings: Settings, work: Work, gallery: Gallery | None = None) -> Made:
    """Make the figure with any settings.

    Args:
        settings: the runs.
        work: where results are kept.
        gallery: the gallery for recognizing objects; None for the one of `load_gallery`.

    Raises:
        UserError: as for `generate`.
    """
    check_plotting()
    runs = {prompt: settings.run(prompt) for prompt in settings.prompts}
    for run in runs.values():
        run.check(work.model)

    def unknown(prompt: str, seed: int, gaussians: Gaussians) -> dict[str, Any]:
        return {}

    judge: Judge = unknown
    truths: dict[str, Views] = {}
    if settings.is_known:
        truths = see_truths(settings.prompts)
        judge = judge_by_truth(truths, gallery or load_gallery())
    records = {}
    for prompt, run in runs.items():
        work.report(f'"{prompt}"')
        folder = work.folder / slug(prompt)
        look = partial(go_through_stage, folder, prompt, settings.seed, judge)
        records[prompt] = run.observe(folder, look, about={}, model=work.model, report=work.report)
    rows = rows_of(records)
    # The second of the eight views is from the side that is shown.
    shown = {prompt: to_uint8(views.pictures[1]) for prompt, views in truths.items()}
    pictures = {"": picture(records, shown)}
    text = agreement(rows)
    if truths:
        pictures["curves"] = curves(rows)
        text = f"{table(rows, 'run', metrics=_METRICS)}\n{text}"
    return Made(rows, text, pictures)


FIGURE = Figure(
    title="The reconstructive stage after more and more iterations",
    source="Section 7.2",
    expected="After few iterations, the stage takes an object nearly as far as the rest of the run would; "
    "after many, it sharpens the object a little.",
    seconds={"small": 120, "full": 1800},
    make=make,
)
