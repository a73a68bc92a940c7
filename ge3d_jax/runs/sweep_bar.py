"""Terminal interface of a sweep: one progress bar for all objects, their rate per hour, and Ctrl-C."""

import contextlib
import time

from ge3d_jax.runs.observers import Observer
from ge3d_jax.runs.progress import RunProgress, gentle_interrupt
from ge3d_jax.runs.sweep_folder import SweepFolder
from ge3d_jax.training.compilation import Compilation
from ge3d_jax.training.iterations import HostNumbers
from ge3d_jax.training.state import TrainState

_STOPPING = "Stopping after this iteration and saving the states; Ctrl-C again to drop what is not saved."


class SweepBar(Observer):
    """A progress bar over the iterations of all objects; Ctrl-C stops after the current iteration.

    Attributes:
        is_stopping: whether the user wants the sweep to stop.
    """

    def __init__(self, iterations: int, folder: SweepFolder, *, enabled: bool) -> None:
        """Initialize the bar.

        Args:
            iterations: total number of iterations for all objects of this process.
            folder: folder of the sweep, including the objects of other processes.
            enabled: whether to show the bar.
        """
        self.is_stopping = False
        self._progress = RunProgress(iterations, enabled=enabled, doing="generating")
        self._stack = contextlib.ExitStack()
        self._iterations = iterations
        self._folder = folder
        self._finished = 0
        self._done = self._done_before = 0
        self._begun = time.monotonic()
        self._runs = 1
        self._told: set[int] = set()
        self._at = -1

    def __enter__(self) -> "SweepBar":
        """Show the bar and handle Ctrl-C."""
        self._stack.enter_context(self._progress)
        self._stop = self._stack.enter_context(gentle_interrupt(self._progress, _STOPPING))
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar and restore Ctrl-C."""
        self._stack.close()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.say(text)

    def warn(self, text: str) -> None:
        """Print a line about a problem, even if there is no bar."""
        self._progress.warn(text)

    def skip(self, iterations: int) -> None:
        """Count iterations that were done earlier or will not be done."""
        self._done += iterations
        self._done_before += iterations
        self._show()

    def begin(self, runs: int) -> None:
        """Announce that `runs` objects are computed together next."""
        self._runs = runs
        self._at = -1

    def finish(self) -> None:
        """Update the number of finished objects."""
        self._finished = self._folder.count_finished()
        self._show()

    def on_compiled(self, compilation: Compilation) -> None:
        """Print the cost of an iteration, once for each program."""
        if id(compilation) in self._told:
            return
        self._told.add(id(compilation))
        seeds = "1 seed" if self._runs == 1 else f"{self._runs} seeds"
        self.say(f"{compilation}; {seeds} at a time")

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Advance the bar."""
        if done != self._at:
            # Decided once for all objects in lockstep, so that they stop after the same iteration.
            self._at = done
            self.is_stopping = self.is_stopping or self._stop.requested
        self._done += 1
        self._show()
        return self.is_stopping

    def _show(self) -> None:
        hours = (time.monotonic() - self._begun) / 3600
        # The other processes have equally many objects to make.
        share = self._folder.count / self._iterations
        rate = (self._done - self._done_before) * share / hours if hours else 0.0
        self._progress.show(
            self._done, f" · {self._finished} of {self._folder.count} objects, {rate:.0f} an hour"
        )
