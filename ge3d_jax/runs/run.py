"""A run in a folder: iterations under observers, then its results; what cannot be made again comes first."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from ge3d_jax.runs.folder import write_json
from ge3d_jax.runs.observers import Bar, Checkpoints, Metrics, Observer
from ge3d_jax.runs.resume import forget_run, save_run
from ge3d_jax.training.compilation import Compilation
from ge3d_jax.training.iterations import MOST_SKIPPED, HostNumbers, RunResult, iterate
from ge3d_jax.training.state import TrainState
from ge3d_jax.training.step import Task

_Written = TypeVar("_Written")


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[_Written]):
    """What came of a run.

    Attributes:
        result: how its iterations ended.
        history: the numbers of every iteration, as in metrics.jsonl.
        written: what `write` returned.
        advice: sentences for the person: why the run ended early, and what other settings would do better.
    """

    result: RunResult
    history: list[HostNumbers]
    written: _Written
    advice: list[str]


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

    def perform(
        self,
        state: TrainState,
        *,
        doing: str,
        progress: bool,
        checkpoint_every: int,
        observers: Sequence[Observer],
        remove_old: Callable[[Path], None],
        write: Callable[[RunResult], _Written],
        then: Callable[[RunResult], RunResult] | None = None,
    ) -> Outcome[_Written]:
        """Iterate, save the state, write the results, and drop the state of a finished run.

        Args:
            state: to begin with.
            doing: what the bar says.
            progress: whether to show a bar.
            checkpoint_every: iterations between saved states; 0 for none.
            observers: more to tell, in their order, before the bar.
            remove_old: removes what an earlier run left in the folder; called once the first iteration is
                compiled and fits the device.
            write: writes the results.
            then: a stage between the last iteration and the results, for a run that was not interrupted. It
                says how it ended itself; until it is through, the state at its beginning stays, and a resumed
                run begins it anew.
        """
        iterations = self.task.iterations if self.stop_at is None else self.stop_at
        metrics = Metrics(self.folder, self.history)
        bar = Bar(iterations, enabled=progress, doing=doing)
        checkpoints = Checkpoints(self.folder, every=checkpoint_every, iterations=iterations)
        watching: list[Observer] = [metrics, *observers, checkpoints, bar]
        has_begun = False

        def on_compiled(compilation: Compilation) -> None:
            nonlocal has_begun
            for observer in watching:
                observer.on_compiled(compilation)
            if has_begun:
                return
            has_begun = True
            if self.is_new:
                remove_old(self.folder)
                forget_run(self.folder)
            for observer in watching:
                observer.on_begin(is_new=self.is_new)
            write_json(self.folder / "config.json", self.description)

        def on_iteration(done: int, numbers: HostNumbers, state: TrainState) -> bool:
            # A list and not a generator: each of them is told.
            return any([observer.on_iteration(done, numbers, state) for observer in watching])

        with contextlib.ExitStack() as stack:
            for observer in watching:
                stack.enter_context(observer)
            result = iterate(
                state,
                self.context,
                self.task,
                parts=self.parts,
                stop_at=self.stop_at,
                on_iteration=on_iteration,
                on_compiled=on_compiled,
            )
        save_run(self.folder, result.state)
        if then is not None and not (result.interrupted or result.diverged):
            result = then(result)
        written = write(result)
        if not (result.interrupted or result.diverged):
            forget_run(self.folder)
        return Outcome(result, metrics.history, written, _advice(result, metrics.history))
