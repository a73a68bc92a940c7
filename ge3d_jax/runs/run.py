"""A run in a folder: iterations under observers, then its results; what cannot be made again comes first."""

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
    """What came of a run.

    Attributes:
        result: how its iterations ended.
        history: the numbers of every iteration, as in metrics.jsonl.
        written: what `write` returned.
        advice: sentences for the person: why the run ended early, and what other settings would do better.
        unwritten: sentences on what could not be written.
    """

    result: RunResult
    history: list[HostNumbers]
    written: _Written
    advice: list[str]
    unwritten: list[str]


def _advice(result: RunResult, history: Sequence[HostNumbers]) -> list[str]:
    """What to tell at the end of a run."""
    advice = result.task.scene.advice(history)
    if not result.diverged:
        return advice
    ended = (
        f"The last {MOST_SKIPPED} steps had no finite gradient, so the run was ended after "
        f"{result.iterations} iterations; the object is the last good one. {result.task.steadier}"
    )
    return [ended, *advice]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to begin, or to go on.

    Attributes:
        folder: where everything is written.
        description: what config.json says of it.
        task: what it does.
        context: what the task needs in every iteration.
        parts: into how many parts the views can be divided that go through the networks at a time.
        history: numbers of the iterations done before; empty for a new run.
        is_new: whether it begins, in place of whatever is in the folder.
        stop_at: iterations after which it is complete; None for the task's last one. See `iterate`.
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
        """Iterations after which it is complete."""
        return self.task.iterations if self.stop_at is None else self.stop_at


@dataclasses.dataclass(frozen=True)
class Part(Generic[_Written]):
    """A run with where it begins, who watches it, and what is made of it.

    Attributes:
        run: the run.
        state: to begin with.
        observers: more to tell, in their order, before the bar.
        remove_old: removes what an earlier run left in the folder; called once the first iteration is
            compiled and fits the device.
        write: writes the results; the splats come first, and what shows them is only attempted.
        then: a stage between the last iteration and the results, for a run that was not interrupted. It says
            how it ended itself; until it is through, the state at its beginning stays, and a resumed run
            begins it anew.
        attempts: to write what the run can do without.
    """

    run: Run
    state: TrainState
    observers: Sequence[Observer]
    remove_old: Callable[[Path], None]
    write: Callable[[RunResult, Attempts], _Written]
    then: Callable[[RunResult], RunResult] | None = None
    attempts: Attempts = dataclasses.field(default_factory=Attempts)

    def perform(self, *, doing: str, progress: bool, save_seconds: float | None) -> Outcome[_Written]:
        """Iterate, save the state, and write the results.

        Args:
            doing: what the bar says.
            progress: whether to show a bar.
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
    """A run whose iterations are through: its state is to be saved first, then its results written.

    Attributes:
        part: what it was.
        result: how its iterations ended.
        history: the numbers of every iteration.
    """

    part: Part[_Written]
    result: RunResult
    history: list[HostNumbers]

    def save(self) -> None:
        """Save the state, from where the run may go on once more: to its end, or beyond."""
        with self.part.attempts.at("The state for --resume"):
            save_run(self.part.run.folder, self.result.state)

    def conclude(self) -> Outcome[_Written]:
        """Go through the stage after it and write the results.

        Raises:
            UserError: they cannot be written.
        """
        result, then, attempts = self.result, self.part.then, self.part.attempts
        if then is not None and not (result.interrupted or result.diverged):
            result = then(result)
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
    """A run under its own observers."""

    def __init__(self, part: Part[Any], save_seconds: float | None, say: Callable[[str], None]) -> None:
        run = part.run
        self.part = part
        self.metrics = Metrics(run.folder, run.history, part.attempts, say=say)
        checkpoints = Checkpoints(run.folder, every_seconds=save_seconds, iterations=run.last, say=say)
        self.observers: list[Observer] = [self.metrics, *part.observers, checkpoints]

    def begin(self) -> None:
        """The first iteration is compiled and fits. Raises UserError where nothing can be written."""
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
    """Iterate runs of one task in step.

    Args:
        parts: runs with the same task, context, parts and end that have come equally far.
        save_seconds: see `Checkpoints`.
        of_all: observers of all of them, told of each run after its own; they are entered already.
        say: told of what could not be written on the way.
        is_stopping: whether the person has asked to stop.
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
        # A list and not a generator: each of them is told.
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
