"""A run in a folder: iterations with observers, then its results, starting with the irreplaceable ones."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from jax.sharding import Mesh

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import unwritable
from ge3d_jax.runs.attempts import Attempts, reason_of
from ge3d_jax.runs.folder import write_json
from ge3d_jax.runs.observers import Bar, Checkpoints, Metrics, Observer, Watched
from ge3d_jax.runs.resume import forget_run, save_run
from ge3d_jax.training.compilation import Compilation
from ge3d_jax.training.iterations import MOST_SKIPPED, HostNumbers, RunResult, iterate_together
from ge3d_jax.training.state import TrainState
from ge3d_jax.training.step import Programs, Task

_Written = TypeVar("_Written")


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[_Written]):
    """The outcome of a run.

    Attributes:
        result: how its iterations ended.
        history: the numbers of every iteration, as in metrics.jsonl.
        written: the return value of `write`.
        advice: sentences for the user on why the run ended early and which settings would work better.
        unwritten: sentences on what could not be written.
    """

    result: RunResult
    history: list[HostNumbers]
    written: _Written
    advice: list[str]
    unwritten: list[str]


def _advice(result: RunResult, history: Sequence[HostNumbers]) -> list[str]:
    """Advice to give at the end of a run."""
    advice = result.task.scene.advice(history)
    if not result.diverged:
        return advice
    ended = (
        f"The last {MOST_SKIPPED} steps had no finite gradient, so the run was stopped after "
        f"{result.iterations} iterations; the object is the last good one. {result.task.steadier}"
    )
    return [ended, *advice]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to start or to resume.

    Attributes:
        folder: where everything is written.
        description: the contents of its config.json.
        task: the task to iterate.
        context: the task's inputs that stay the same in every iteration.
        parts: number of parts into which the views of one pass through the networks can be divided.
        history: the numbers of earlier iterations; empty for a new run.
        is_new: whether the run starts afresh and replaces the contents of the folder.
        stop_at: number of iterations after which it is complete; None means all of the task's. See `iterate`.
    """

    folder: Path
    description: Mapping[str, Any]
    task: Task
    context: Any
    parts: int
    history: list[HostNumbers]
    is_new: bool
    stop_at: int | None = None

    @property
    def last(self) -> int:
        """Number of iterations after which the run is complete."""
        return self.task.iterations if self.stop_at is None else self.stop_at


@dataclasses.dataclass(frozen=True)
class Part(Generic[_Written]):
    """A run together with its initial state, its observers, and the writing of its results.

    Attributes:
        run: the run.
        state: the initial state.
        observers: additional observers, called in order before the bar.
        remove_old: removes what an earlier run left in the folder; called once the first iteration is
            compiled and fits the device.
        write: writes the results; the splats come first, and their visualizations are best-effort.
        then: a stage between the last iteration and the results, skipped if the run was interrupted. It
            returns its own result; until it is done, the checkpoint from before the stage is kept, and a
            resumed run starts the stage over.
        attempts: records failures to write optional files.
    """

    run: Run
    state: TrainState
    observers: Sequence[Observer]
    remove_old: Callable[[Path], None]
    write: Callable[[RunResult, Attempts], _Written]
    then: Callable[[RunResult, Attempts], RunResult] | None = None
    attempts: Attempts = dataclasses.field(default_factory=Attempts)

    def perform(self, *, doing: str, progress: bool, save_seconds: float | None) -> Outcome[_Written]:
        """Iterate, save the state, and write the results.

        Args:
            doing: label of the progress bar.
            progress: whether to show a progress bar.
            save_seconds: see `Checkpoints`.

        Raises:
            UserError: the results cannot be written.
        """
        with Bar(self.run.last, enabled=progress, doing=doing) as bar:
            (ended,) = perform_together(
                [self],
                save_seconds=save_seconds,
                of_all=[bar],
                say=bar.warn,
                is_stopping=bar.is_stopping,
            )
        ended.save()
        return ended.conclude()


@dataclasses.dataclass(frozen=True)
class Ended(Generic[_Written]):
    """A run whose iterations are done; its state must be saved first, then its results written.

    Attributes:
        part: the run with its observers.
        result: how its iterations ended.
        history: the numbers of every iteration.
    """

    part: Part[_Written]
    result: RunResult
    history: list[HostNumbers]

    def save(self) -> None:
        """Save the state, from which the run can be resumed, to its end or beyond."""
        with self.part.attempts.at("The state for --resume"):
            save_run(self.part.run.folder, self.result.state)

    def conclude(self) -> Outcome[_Written]:
        """Run the stage that follows, if any, and write the results.

        Raises:
            UserError: the results cannot be written.
        """
        result, then, attempts = self.result, self.part.then, self.part.attempts
        if then is not None and not (result.interrupted or result.diverged):
            result = then(result, attempts)
        try:
            written = self.part.write(result, attempts)
        except OSError as error:
            also = " ".join(["", *attempts.failed])
            raise UserError(
                f"The object could not be written to {self.part.run.folder} ({reason_of(error)}); make room, "
                f"and --resume writes it.{also}"
            ) from error
        return Outcome(result, self.history, written, _advice(result, self.history), attempts.failed)


class _Watched:
    """A run with its own observers."""

    def __init__(self, part: Part[Any], save_seconds: float | None, say: Callable[[str], None]) -> None:
        run = part.run
        self.part = part
        self.metrics = Metrics(run.folder, run.history, part.attempts, say=say)
        checkpoints = Checkpoints(run.folder, every_seconds=save_seconds, iterations=run.last, say=say)
        self.observers: list[Observer] = [self.metrics, *part.observers, checkpoints]

    def begin(self) -> None:
        """Start once the first iteration is compiled and fits. Raises UserError if nothing can be written."""
        run = self.part.run
        try:
            if run.is_new:
                self.part.remove_old(run.folder)
                forget_run(run.folder)
            for observer in self.observers:
                observer.on_begin(is_new=run.is_new)
            write_json(run.folder / "config.json", run.description)
        except OSError as error:
            raise unwritable(run.folder, error) from error


def perform_together(
    parts: Sequence[Part[_Written]],
    *,
    save_seconds: float | None,
    of_all: Sequence[Observer],
    say: Callable[[str], None],
    is_stopping: Callable[[], bool],
    programs: Programs | None = None,
    mesh: Mesh | None = None,
) -> list[Ended[_Written]]:
    """Iterate several runs of the same task in lockstep.

    Args:
        parts: runs with the same task, context, parts, and end that have done the same number of iterations.
        save_seconds: see `Checkpoints`.
        of_all: observers shared by all runs, called after each run's own; they have already been entered.
        say: called with messages about what could not be written along the way.
        is_stopping: whether the user has asked to stop.
        programs, mesh: see `iterate_together`.
    """
    run, watched = parts[0].run, [_Watched(part, save_seconds, say) for part in parts]
    has_begun = False

    def on_compiled(compilation: Compilation) -> None:
        nonlocal has_begun
        for observer in (*(one for each in watched for one in each.observers), *of_all):
            observer.on_compiled(compilation)
        if not has_begun:
            has_begun = True
            for each in watched:
                each.begin()

    def on_iteration(index: int, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        watching = (*watched[index].observers, *of_all)
        # A list rather than a generator, so that every observer is called.
        return any([observer.on_iteration(done, numbers, state) for observer in watching])

    with contextlib.ExitStack() as stack:
        for each in watched:
            for observer in each.observers:
                stack.enter_context(observer)
                observer.on_run(Watched(each.part.run, each.part.attempts, say, is_stopping))
        results = iterate_together(
            [part.state for part in parts],
            run.context,
            run.task,
            parts=run.parts,
            stop_at=run.stop_at,
            on_iteration=on_iteration,
            on_compiled=on_compiled,
            programs=programs,
            mesh=mesh,
        )
    return [
        Ended(each.part, result, each.metrics.history) for each, result in zip(watched, results, strict=True)
    ]
