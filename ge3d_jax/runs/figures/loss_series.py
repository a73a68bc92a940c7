"""Timed objects of one loss, for the figures that compare losses: generation, evaluation, and records.

With a time budget, a run does as many iterations as fit it, excluding compilation. A shortened run, in which
all schedules reach their end, measures the time per iteration; all schedules are then stretched to the
resulting number of iterations.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.pinned import do_pinned, usable_cores
from ge3d_jax.core.settings import to_tree
from ge3d_jax.metrics.likeness import Views
from ge3d_jax.metrics.recognition import Gallery, load_gallery
from ge3d_jax.runs.asked import Asked
from ge3d_jax.runs.evaluate import object_pictures
from ge3d_jax.runs.figures.base import Record, remember
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.judged import Judged, see, see_truths
from ge3d_jax.runs.judging import judge_group, judge_object
from ge3d_jax.runs.object_request import ObjectRequest
from ge3d_jax.runs.timed import Moment, Pace, Studio
from ge3d_jax.runs.trials import Trial
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.training.config import Config
from ge3d_jax.training.length import lasting
from ge3d_jax.viewer.sheet import to_uint8

_FIELDS = ("positions", "log_scales", "quaternions", "opacity_logits", "sh", "mask")
# The views shown in pictures, of the eight around an object: front, left, back, right.
SIDES = slice(None, None, 2)


@dataclass(frozen=True)
class Series:
    """Objects of one loss, all with the same number of iterations.

    Attributes:
        trial: the loss and its settings.
        preset: base settings.
        budget: seconds for the iterations of an object; None uses the preset's number of iterations.
        prompts, seeds: one object is made for each combination.
        processes: number of parallel processes, which affects the speed of each.
        folder: folder for the records of these objects.
        model: model to use instead of the preset's.
        weights: fingerprint of the model's weights.
        shares: fractions of the run after which the object is evaluated, in addition to its end.
    """

    trial: Trial
    preset: str
    budget: float | None
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    processes: int
    folder: Path
    model: str | None
    weights: str
    shares: tuple[float, ...] = ()

    @property
    def objects(self) -> list[tuple[str, int]]:
        """Prompt and seed of each object."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    @cached_property
    def asked(self) -> Asked:
        """The request of each run, except for prompt, seed and number of iterations."""
        return self.trial.asked(self.preset).but(model=self.model)

    def check(self) -> None:
        """Check everything that can be checked without loading the model.

        Raises:
            UserError: settings, a prompt or a seed are invalid.
        """
        if self.budget is not None and not self.budget > 0:
            raise UserError(
                f"A budget of {self.budget:g} seconds is too short for one iteration; give seconds above 0."
            )
        place = self.asked.model.check()
        for prompt, seed in self.objects:
            ObjectRequest.checked(self.asked.but(prompt=prompt, seed=seed), place, out=self.folder)

    def path(self, prompt: str, seed: int) -> Path:
        """Path of the record of an object's splats, without suffix."""
        return self.folder / f"{slug(prompt)}-{seed}"

    def judged_path(self, prompt: str, seed: int) -> Path:
        """Path of the record of an object's metrics and pictures, without suffix."""
        return self.folder / f"{slug(prompt)}-{seed}-judged"


@dataclass(frozen=True)
class Judges:
    """References for evaluating objects.

    Attributes:
        gallery: the recognizer's reference pictures; None if no prompt has a ground truth.
        truths: ground-truth views by prompt, for prompts with a ground truth.
    """

    gallery: Gallery | None
    truths: Mapping[str, Views]

    @classmethod
    def of(cls, prompts: Sequence[str]) -> "Judges":
        """References from the Toybox world; kinds not traced before are traced, a few seconds each."""
        known = [prompt for prompt in prompts if _is_of_world(prompt)]
        return cls(load_gallery() if known else None, see_truths(known))


@dataclass(frozen=True)
class Judgment:
    """Evaluation of an object of a series.

    Attributes:
        prompt, seed: the object's prompt and seed.
        moments: iterations, seconds and the metrics of `judge_object` at each moment; the last moment is the
            end of the run.
        sides: uint8 (moments, 4, H, W, 3), its front, left, back and right.
    """

    prompt: str
    seed: int
    moments: list[dict[str, Any]]
    sides: np.ndarray


@dataclass(frozen=True)
class Done:
    """The finished part of a series.

    Attributes:
        series: the series.
        objects: the evaluated objects, in the order of the series.
        together: the metrics of `judge_group` for these objects.
    """

    series: Series
    objects: list[Judgment]
    together: dict[str, float | None]


def make_all(all_series: Sequence[Series], judges: Judges, report: Callable[[str], None]) -> None:
    """Make and evaluate the missing objects of several series, each series in one process.

    If there are several processes, each is pinned to one core, so that all losses run under equal conditions.

    Args:
        all_series: the series in order, all with the same number of processes.
        judges: references for evaluation.
        report: called with a line for each new object.

    Raises:
        UserError: there are more processes than cores, records belong to a different request, or a budget is
            too short for one iteration.
        KeyboardInterrupt: the user stopped it; finished objects are kept.
    """
    processes = all_series[0].processes
    missing = [series for series in all_series if not _is_complete(series)]
    if not missing:
        return
    if processes > 1:
        cores = len(usable_cores())
        if cores < processes:
            raise UserError(
                f"The timing needs {processes} processes with a core each, but there are only {cores} "
                "cores; give fewer with --processes."
            )
    do_pinned(partial(make_series, judges=judges), missing, processes=processes, report=report)


def make_series(series: Series, report: Callable[[str], None], *, judges: Judges) -> None:
    """Make and evaluate the missing objects of a series; see `make_all`."""
    workshop = _Workshop(series, judges, report)
    settings = _settings(series, _pace(series, workshop.pace))
    objects = series.objects
    for number, (prompt, seed) in enumerate(objects, 1):
        asked = _asked(series, settings, prompt, seed)
        is_new = not _is_judged(series, prompt, seed)
        made = remember(series.path(prompt, seed), asked, partial(workshop.make, prompt, seed, settings))
        judged = remember(
            series.judged_path(prompt, seed), asked, partial(workshop.judge, prompt, seed, made)
        )
        if is_new:
            last = judged.numbers["moments"][-1]
            report(
                f"{series.trial.label} {number}/{len(objects)}: {prompt}, seed {seed}, "
                f"{last['iterations']} iterations in {last['seconds']:.1f} seconds"
            )
    remember(
        group_path(series, objects),
        _group_asked(series, settings, objects),
        partial(workshop.judge_together, settings, objects),
    )


def read_series(series: Series, judges: Judges) -> Done | None:
    """Read the finished part of a series; None if it has no objects yet.

    Args:
        series: the series.
        judges: references for the group metrics, if those were not computed yet.

    Raises:
        UserError: records belong to a different request, or cannot be read.
    """
    done = [one for one in series.objects if _is_judged(series, *one)]
    if not done:
        return None
    workshop = _Workshop(series, judges, print)
    settings = _settings(series, _pace(series, _never))
    objects = []
    for prompt, seed in done:
        asked = _asked(series, settings, prompt, seed)
        record = remember(series.judged_path(prompt, seed), asked, _never)
        objects.append(Judgment(prompt, seed, record.numbers["moments"], record.arrays["sides"]))
    if _file(group_path(series, done)).is_file():
        together = remember(group_path(series, done), _group_asked(series, settings, done), _never)
    else:
        together = workshop.judge_together(settings, done)
    return Done(series, objects, dict(together.numbers))


def splats_of(series: Series, prompt: str, seed: int) -> Gaussians:
    """The final splats of an object already made. Raises UserError if its record cannot be read."""
    settings = _settings(series, _pace(series, _never))
    record = remember(series.path(prompt, seed), _asked(series, settings, prompt, seed), _never)
    return _splats(record, -1)


def _file(path: Path) -> Path:
    """The file that marks a record as complete."""
    return path.with_name(f"{path.name}.json")


def _is_judged(series: Series, prompt: str, seed: int) -> bool:
    return _file(series.judged_path(prompt, seed)).is_file()


def _is_complete(series: Series) -> bool:
    """Whether all records exist; they may still belong to a different request."""
    return (
        all(_is_judged(series, *one) for one in series.objects)
        and _file(group_path(series, series.objects)).is_file()
    )


def _never() -> NoReturn:
    raise RuntimeError("A record disappeared while it was in use.")


def _settings(series: Series, pace: Pace | None) -> Config:
    """The settings of the runs, with as many iterations as fit the budget."""
    settings = series.asked.settings
    return settings if pace is None else lasting(settings, pace.iterations)


def _pace(series: Series, measure: Callable[[], Pace]) -> Pace | None:
    """The pace of a series with a time budget, measured now or read from its record."""
    if series.budget is None:
        return None
    asked = {
        "settings": to_tree(series.asked.settings),
        "seconds": series.budget,
        "processes": series.processes,
        "weights": series.weights,
    }
    numbers = remember(series.folder / "pace", asked, lambda: Record(asdict(measure()))).numbers
    return Pace(**numbers)


def _asked(series: Series, settings: Config, prompt: str, seed: int) -> dict[str, Any]:
    """Everything an object depends on."""
    return {
        "prompt": prompt,
        "seed": seed,
        "settings": to_tree(settings),
        "processes": series.processes,
        "weights": series.weights,
        "shares": list(series.shares),
    }


def _group_asked(series: Series, settings: Config, objects: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {
        "objects": [list(one) for one in objects],
        "settings": to_tree(settings),
        "processes": series.processes,
        "weights": series.weights,
    }


def group_path(series: Series, objects: Sequence[tuple[str, int]]) -> Path:
    """Path of the record of the group metrics; each set of objects has its own."""
    digest = hashlib.sha256(json.dumps(objects).encode()).hexdigest()[:8]
    return series.folder / f"together-{digest}"


def _is_of_world(prompt: str) -> bool:
    """Whether the prompt has a ground truth."""
    try:
        parse(prompt)
    except UserError:
        return False
    return True


class _Workshop:
    """Makes and evaluates the objects of a series; loads the model when it is first needed."""

    def __init__(self, series: Series, judges: Judges, report: Callable[[str], None]) -> None:
        """Initialize without loading anything."""
        self._series = series
        self._judges = judges
        self._report = report

    @cached_property
    def _studio(self) -> Studio:
        model = self._series.asked.model
        return Studio(model.load(model.check()))

    def pace(self) -> Pace:
        """See `Studio.pace`."""
        series = self._series
        assert series.budget is not None
        try:
            pace = self._studio.pace(series.prompts[0], series.asked.settings, series.budget)
        except UserError as error:
            raise UserError(f"{series.trial.label}: {error}") from error
        self._report(
            f"{series.trial.label}: {pace.seconds_per_iteration:.3g} seconds an iteration, "
            f"{pace.iterations} in {series.budget:g} seconds"
        )
        return pace

    def make(self, prompt: str, seed: int, settings: Config) -> Record:
        """Make an object, and record its splats at each moment."""
        last = settings.iterations
        wanted = {max(1, round(share * last)) for share in self._series.shares}
        timed = self._studio.make(prompt, seed, settings, moments=wanted - {last})
        moments = [*timed.moments, Moment(timed.iterations, timed.seconds, timed.gaussians)]
        return Record(
            {
                "diverged": timed.diverged,
                "moments": [
                    {"iterations": one.iteration, "seconds": round(one.seconds, 3)} for one in moments
                ],
            },
            {name: np.stack([getattr(one.gaussians, name) for one in moments]) for name in _FIELDS},
        )

    def judge(self, prompt: str, seed: int, made: Record) -> Record:
        """Evaluate an object at each of its moments."""
        moments, sides = [], []
        for index, told in enumerate(made.numbers["moments"]):
            if self._judges.gallery is None or prompt not in self._judges.truths:
                pictures, numbers = object_pictures(_splats(made, index)), dict(told)
            else:
                judged = self._see(prompt, seed, made, index)
                pictures, numbers = judged.pictures, told | judge_object(judged, self._judges.gallery)
            if made.numbers["diverged"]:
                numbers["failed"] = 1.0
            moments.append(numbers)
            sides.append(to_uint8(pictures[SIDES]))
        return Record({"moments": moments}, {"sides": np.stack(sides)})

    def judge_together(self, settings: Config, objects: Sequence[tuple[str, int]]) -> Record:
        """Compute the group metrics of existing objects, each in its final state."""
        series, seen = self._series, []
        for prompt, seed in objects:
            if prompt in self._judges.truths:
                made = remember(series.path(prompt, seed), _asked(series, settings, prompt, seed), _never)
                seen.append(self._see(prompt, seed, made, -1))
        return Record(judge_group(seen) if seen else {})

    def _see(self, prompt: str, seed: int, made: Record, index: int) -> Judged:
        seconds = made.numbers["moments"][index]["seconds"]
        return see(prompt, seed, _splats(made, index), seconds, truth=self._judges.truths[prompt])


def _splats(made: Record, index: int) -> Gaussians:
    """The splats of an object at one of its moments."""
    return Gaussians(**{name: jnp.asarray(made.arrays[name][index]) for name in _FIELDS})
