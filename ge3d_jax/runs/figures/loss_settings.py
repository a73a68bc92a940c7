"""Settings of the figures that compare losses, from sizes and flags, checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.tables import counted
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.runs.asked import model_by_preset
from ge3d_jax.runs.evaluation_prompts import check_prompts
from ge3d_jax.runs.figures.base import Work
from ge3d_jax.runs.figures.loss_series import Done, Judges, Series, make_all, read_series
from ge3d_jax.runs.judging import METRICS, check_metrics
from ge3d_jax.runs.made_objects import model_fingerprint
from ge3d_jax.runs.request import TOYBOX_MARKER, check_prompt
from ge3d_jax.runs.sweep_plan import read_lines
from ge3d_jax.runs.trials import Trial, read_trials
from ge3d_jax.training.presets import PUBLISHED

ALL_LOSSES = tuple(Trial(name) for name in LOSSES)
# The paper's prompts without duplicates: one object shares its prompt and its length with another.
PAPER_PROMPTS = tuple(dict.fromkeys(prompt for prompt, _ in PUBLISHED.values()))
# The parts of a comparison.
EQUAL_TIMES, OWN_LENGTHS = "equal times", "own lengths"


@dataclass(frozen=True)
class Settings:
    """Settings of a figure that compares losses.

    Attributes:
        preset: the preset that all settings are based on.
        trials: the losses.
        prompts, seeds: prompts and seeds, with an object for each combination.
        budget: time limit for the iterations of an object, seconds.
        processes: number of parallel processes, each on one processor core; a single process uses all cores.
        metrics: names in METRICS, the columns or panels.
        clip: folder, file or hub id of a CLIP model, for the metrics that need one; None for none.
        inception: file of the Inception of FID; None for none.
        own_length: number of prompts for which an object with the first seed is also made in the preset's own
            number of iterations.
        shares: fractions of a run after which an object is also judged.
    """

    preset: str
    trials: tuple[Trial, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: float
    processes: int
    metrics: tuple[str, ...]
    clip: str | None = None
    inception: str | None = None
    own_length: int = 0
    shares: tuple[float, ...] = ()

    def series(self, work: Work) -> dict[str, list[Series]]:
        """The series to make: in equal times, and in the preset's own numbers of iterations.

        Raises:
            UserError: a loss, a setting, or a model does not exist.
        """
        weights = model_fingerprint(model_by_preset(self.preset, work.model).check())
        own = self.prompts[: self.own_length]
        parts = {
            EQUAL_TIMES: (self.budget, self.prompts, self.seeds),
            OWN_LENGTHS: (None, own, self.seeds[:1]),
        }
        return {
            name: [
                Series(
                    trial=trial,
                    preset=self.preset,
                    budget=budget,
                    prompts=prompts,
                    seeds=seeds,
                    processes=self.processes,
                    folder=work.folder / name.replace(" ", "_") / trial.folder_name,
                    model=work.model,
                    weights=weights,
                    shares=self.shares,
                )
                for trial in self.trials
            ]
            for name, (budget, prompts, seeds) in parts.items()
            if prompts
        }


def made_or_read(
    settings: Settings, work: Work, *, only_done: bool = False, judges: Judges | None = None
) -> tuple[dict[str, list[Done]], Judges]:
    """Make missing objects, and read all results.

    Args:
        settings: settings of the comparison.
        work: where results are kept.
        only_done: do not make anything.
        judges: what to judge objects by; None for the judges of the Toybox world.

    Returns:
        Part of the comparison → available results of each loss; and the judges.

    Raises:
        UserError: an input is invalid, which is reported before anything runs; nothing is available; or see
            `make_all`.
    """
    parts = settings.series(work)
    all_series = [series for part in parts.values() for series in part]
    for series in all_series:
        series.check()
    if judges is None:
        judges = Judges.of(settings.prompts)
    if not only_done:
        make_all(all_series, judges, work.report)
    found = {name: [read_series(series, judges) for series in part] for name, part in parts.items()}
    done = {name: [one for one in part if one is not None] for name, part in found.items()}
    if not any(done.values()):
        raise UserError(f"Nothing is done in {work.folder} yet; leave --only_done out.")
    return {name: part for name, part in done.items() if part}, judges


def counted_objects(settings: Settings, all_done: Sequence[Done]) -> str:
    """Format the number of available objects of a part, and the total if some are missing."""
    there = sum(len(done.objects) for done in all_done)
    wanted = len(settings.trials) * len(all_done[0].series.objects)
    return counted(there, "object") if there == wanted else f"{there} of {wanted} objects so far"


@dataclass(frozen=True)
class Flags:
    """The values of a script's flags; None keeps the size's setting.

    Attributes:
        losses: names of losses.
        trials: alternatively, a file with a loss and its settings on each line.
        prompts: a file with a prompt on each line.
        seeds: seeds of the objects.
        seconds: time limit for the iterations of an object.
        metrics: names in METRICS.
        clip: folder, file or hub id of a CLIP model.
        inception: file of the Inception of FID.
        processes: number of parallel processes.
    """

    losses: Sequence[str] | None = None
    trials: Path | None = None
    prompts: Path | None = None
    seeds: Sequence[int] | None = None
    seconds: float | None = None
    metrics: Sequence[str] | None = None
    clip: str | None = None
    inception: str | None = None
    processes: int | None = None

    def applied(self, settings: Settings, model: str | None) -> Settings:
        """Apply the flags to settings.

        Args:
            settings: settings of a size.
            model: a model to use instead of the bundled one that the preset is named after.

        Raises:
            UserError: a value is invalid; the message names the file and line if it comes from a file.
        """
        if self.trials is not None and self.losses is not None:
            raise UserError("--losses and --trials both say what to compare; give one of them.")
        changes: dict[str, object] = {}
        if self.losses is not None:
            changes["trials"] = _trials(self.losses, settings.preset)
        if self.trials is not None:
            changes["trials"] = tuple(read_trials(self.trials, preset=settings.preset))
        if self.prompts is not None:
            changes["prompts"] = _prompts(self.prompts, settings.preset, model)
        if self.metrics is not None:
            changes["metrics"] = _metrics(self.metrics)
        plain: Mapping[str, object] = {
            "seeds": None if self.seeds is None else tuple(self.seeds),
            "budget": self.seconds,
            "clip": self.clip,
            "inception": self.inception,
            "processes": self.processes,
        }
        changes |= {name: value for name, value in plain.items() if value is not None}
        return replace(settings, **changes)  # type: ignore[arg-type]


def _trials(names: Sequence[str], preset: str) -> tuple[Trial, ...]:
    trials = tuple(Trial(name.strip()) for name in dict.fromkeys(names))
    if not trials:
        raise UserError(f"--losses names no loss; use some of {', '.join(LOSSES)}.")
    for trial in trials:
        trial.settings(preset)
    return trials


def _prompts(file: Path, preset: str, model: str | None) -> tuple[str, ...]:
    """Read and check the prompts of a file. Raises UserError, prefixed with the line's location."""
    place = model_by_preset(preset, model).check()
    prompts: dict[str, None] = {}
    for line in read_lines(file):
        assert line.prompt is not None
        try:
            if line.changes:
                raise UserError(
                    "there is a setting after the prompt, but all losses have their own; remove it."
                )
            check_prompt(line.prompt, place)
            if (place / TOYBOX_MARKER).is_file():
                check_prompts([line.prompt])
            if line.prompt in prompts:
                raise UserError(f"{line.prompt!r} is there twice; leave one of them out.")
        except UserError as error:
            raise UserError(f"{line.place}{error}") from error
        prompts[line.prompt] = None
    return tuple(prompts)


def _metrics(names: Sequence[str]) -> tuple[str, ...]:
    wanted = tuple(name.strip() for name in dict.fromkeys(names))
    if not wanted:
        raise UserError(f"--metrics names no metric; use some of {', '.join(METRICS)}.")
    check_metrics(wanted)
    return wanted
