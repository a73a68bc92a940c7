"""Objects of one loss by the clock, for the figures that compare losses: made, judged, and remembered.

Where the time is given, as many iterations are made as fit it, compiling not counted: a run in short, whose
schedules have all come to their end, tells how long one takes. All schedules are then stretched to that end.
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
from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.runs.asked import Asked
from ge3d_jax.runs.evaluate import object_pictures
from ge3d_jax.runs.figures.base import Record, remember
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.judged import Judged, see, see_truths
from ge3d_jax.runs.judging import judge_group, judge_object, load_judges
from ge3d_jax.runs.object_request import ObjectRequest
from ge3d_jax.runs.timed import Moment, Pace, Studio
from ge3d_jax.runs.trials import Trial
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.training.config import Config
from ge3d_jax.training.length import lasting
from ge3d_jax.viewer.sheet import to_uint8

_FIELDS = ("positions", "log_scales", "quaternions", "opacity_logits", "sh", "mask")
# Of an object's eight views, those that its pictures show: front, left, back, right.
SIDES = slice(None, None, 2)


@dataclass(frozen=True)
class Series:
    """Objects of one loss, with one number of iterations.

    Attributes:
        trial: the loss and its settings.
        preset: what they begin with.
        budget: seconds that the iterations of an object may take; None for the preset's own number.
        prompts, seeds: an object of each with each.
        processes: how many work at a time, which decides how fast each is.
        folder: for the records of these objects.
        model: another model than the preset's.
        weights: fingerprint of the model's weights.
        shares: of the run, after which the object is judged, too.
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
        """Prompt and seed of each."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    @cached_property
    def asked(self) -> Asked:
        """What their runs are asked for, but for prompt, seed and the number of iterations."""
        return self.trial.asked(self.preset).but(model=self.model)

    def check(self) -> None:
        """Check all that can be checked without the model.

        Raises:
            UserError: settings, a prompt or a seed that cannot be.
        """
        if self.budget is not None and not self.budget > 0:
            raise UserError(
                f"A budget of {self.budget:g} seconds is too short for one iteration; give seconds above 0."
            )
        place = self.asked.model.check()
        for prompt, seed in self.objects:
            ObjectRequest.checked(self.asked.but(prompt=prompt, seed=seed), place, out=self.folder)

    def path(self, prompt: str, seed: int) -> Path:
        """Of the record of an object's splats, without a suffix."""
        return self.folder / f"{slug(prompt)}-{seed}"

    def judged_path(self, prompt: str, seed: int) -> Path:
        """Of the record of its numbers and pictures, likewise."""
        return self.folder / f"{slug(prompt)}-{seed}-judged"


@dataclass(frozen=True)
class Judges:
    """What objects are judged by.

    Attributes:
        gallery: the recognizer's; None where no truth is known.
        truths: the true views of each prompt whose truth is known.
    """

    gallery: Gallery | None
    truths: Mapping[str, Views]

    @classmethod
    def of(cls, prompts: Sequence[str], report: Callable[[str], None]) -> "Judges":
        """Those of the Toybox world; kinds that were never judged before are traced, some seconds each."""
        known = [prompt for prompt in prompts if _is_of_world(prompt)]
        return cls(load_judges(report) if known else None, see_truths(known))


@dataclass(frozen=True)
class Judgment:
    """What came of an object of a series.

    Attributes:
        prompt, seed: what it is.
        moments: numbers of each moment, the last one of the whole run: iterations, seconds, and those of
            `judge_object`.
        sides: uint8 (moments, 4, H, W, 3), its front, left, back and right.
    """

    prompt: str
    seed: int
    moments: list[dict[str, Any]]
    sides: np.ndarray


@dataclass(frozen=True)
class Done:
    """What there is of a series.

    Attributes:
        series: which.
        objects: those that are made and judged, in the order of the series.
        together: the numbers of `judge_group`, of these objects.
    """

    series: Series
    objects: list[Judgment]
    together: dict[str, float | None]


def make_all(all_series: Sequence[Series], judges: Judges, report: Callable[[str], None]) -> None:
    """Make and judge the objects of several series that are not there yet, a series by a process at a time.

    With several processes each keeps one processor core, so that all losses run alike.

    Args:
        all_series: in their order, with the same number of processes.
        judges: what objects are judged by.
        report: told of each object that is new.

    Raises:
        UserError: more processes than cores; records that were asked for otherwise; a budget too short for
            one iteration.
        KeyboardInterrupt: the user stopped it; what is done is kept.
    """
    processes = all_series[0].processes
    missing = [series for series in all_series if not _is_complete(series)]
    if not missing:
        return
    if processes > 1:
        cores = len(usable_cores())
        if cores < processes:
            raise UserError(
                f"The times are those of {processes} processes with a core each, but there are {cores} "
                "cores; give fewer with --processes."
            )
    do_pinned(partial(make_series, judges=judges), missing, processes=processes, report=report)


def make_series(series: Series, report: Callable[[str], None], *, judges: Judges) -> None:
    """Make and judge the objects of a series that are not there yet; see `make_all`."""
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
    """What there is of a series; None where it has no object yet.

    Args:
        series: which.
        judges: what objects are judged by that were not judged together yet.

    Raises:
        UserError: records that were asked for otherwise, or that cannot be read.
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
    """An object that was made, at its end. Raises UserError where its record cannot be read."""
    settings = _settings(series, _pace(series, _never))
    record = remember(series.path(prompt, seed), _asked(series, settings, prompt, seed), _never)
    return _splats(record, -1)


def _file(path: Path) -> Path:
    """The file that says that a record is done."""
    return path.with_name(f"{path.name}.json")


def _is_judged(series: Series, prompt: str, seed: int) -> bool:
    return _file(series.judged_path(prompt, seed)).is_file()


def _is_complete(series: Series) -> bool:
    """Whether there is nothing to do. What is there may still have been asked for otherwise."""
    return (
        all(_is_judged(series, *one) for one in series.objects)
        and _file(group_path(series, series.objects)).is_file()
    )


def _never() -> NoReturn:
    raise RuntimeError("A record that was there is not there any more.")


def _settings(series: Series, pace: Pace | None) -> Config:
    """The settings of the runs, over as many iterations as fit."""
    settings = series.asked.settings
    return settings if pace is None else lasting(settings, pace.iterations)


def _pace(series: Series, measure: Callable[[], Pace]) -> Pace | None:
    """The pace of a series whose time is given, measured now or earlier."""
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
    """All that an object depends on."""
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
    """Of the record of what is judged together; other objects have another one."""
    digest = hashlib.sha256(json.dumps(objects).encode()).hexdigest()[:8]
    return series.folder / f"together-{digest}"


def _is_of_world(prompt: str) -> bool:
    """Whether the truth is known."""
    try:
        parse(prompt)
    except UserError:
        return False
    return True


class _Workshop:
    """What makes and judges the objects of a series, opened when it is first needed."""

    def __init__(self, series: Series, judges: Judges, report: Callable[[str], None]) -> None:
        """Nothing is opened yet."""
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
        """Make an object; keep its splats at each moment."""
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
        """Judge an object at each of its moments."""
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
        """Judge objects that are there together, each at its end."""
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
    """An object at one of its moments."""
    return Gaussians(**{name: jnp.asarray(made.arrays[name][index]) for name in _FIELDS})
