"""Observers (callbacks) of a run: the progress bar, metrics.jsonl, previews, and checkpoints.

To add one, subclass `Observer` in a file of its own and pass an instance to the run.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ge3d_jax.core.files import clear_leftovers, remove_files
from ge3d_jax.runs.attempts import Attempts, reason_of
from ge3d_jax.runs.folder import MetricsFile, write_metrics
from ge3d_jax.runs.progress import RunProgress, gentle_interrupt
from ge3d_jax.runs.resume import save_run
from ge3d_jax.scenes.base import Scene
from ge3d_jax.training.compilation import Compilation
from ge3d_jax.training.iterations import HostNumbers
from ge3d_jax.training.state import TrainState
from ge3d_jax.viewer.sheet import save_png
from ge3d_jax.viewer.turntable import Viewpoint, render_around, turntable_azimuths, view_sheet

if TYPE_CHECKING:
    from ge3d_jax.runs.run import Run

_PREVIEW_VIEWS = 4
_PREVIEW_SIZE = 128
# How often to save a checkpoint, and the largest fraction of the time to spend on it.
SAVE_SECONDS = 30.0
_LARGEST_SHARE = 0.02


@dataclasses.dataclass(frozen=True)
class Watched:
    """The run that an observer is attached to.

    Attributes:
        run: the run.
        attempts: records failures to write optional files.
        say: prints a line for the user.
        is_stopping: whether the user has asked the run to stop.
    """

    run: "Run"
    attempts: Attempts
    say: Callable[[str], None]
    is_stopping: Callable[[], bool]


class Observer(contextlib.AbstractContextManager[Any]):
    """Base class of the observers, with hooks that do nothing.

    An observer is a context manager, entered before the run and exited after it.
    """

    def __exit__(self, *_: object) -> None:
        """Called after the run."""

    def on_run(self, watched: Watched) -> None:
        """Called with the run to observe, before it is compiled."""

    def on_compiled(self, compilation: Compilation) -> None:
        """Called when an iteration has been compiled and fits the device."""

    def on_begin(self, *, is_new: bool) -> None:
        """Called before the first iteration; `is_new` is false if the run is resumed."""

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Called after each iteration, with the number done so far; returns whether to stop the run.

        The state is only valid until this returns.
        """
        return False


class Bar(Observer):
    """A progress bar that also handles Ctrl-C, which stops the run after the current iteration."""

    def __init__(self, total: int, *, enabled: bool, doing: str) -> None:
        self._progress = RunProgress(total, enabled=enabled, doing=doing)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Bar":
        """Show the bar and handle Ctrl-C."""
        self._stack.enter_context(self._progress)
        self._stop = self._stack.enter_context(gentle_interrupt(self._progress))
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

    def is_stopping(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._stop.requested

    def on_compiled(self, compilation: Compilation) -> None:
        """Print the compilation time and the memory requirements."""
        self.say(str(compilation))

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Advance the bar."""
        self._progress.update(done, numbers)
        return self.is_stopping()


class Metrics(Observer):
    """Writes metrics.jsonl, one line per iteration.

    If the disk is full, the lines are kept and written at the end if there is room by then.

    Attributes:
        history: the lines so far, including those from before a resumed run.
    """

    def __init__(
        self, folder: Path, earlier: list[HostNumbers], attempts: Attempts, *, say: Callable[[str], None]
    ) -> None:
        self.history = list(earlier)
        self._path = folder / "metrics.jsonl"
        self._file: MetricsFile | None = MetricsFile(self._path, earlier=earlier)
        self._attempts = attempts
        self._say = say
        self._begun = time.monotonic() - (earlier[-1]["seconds"] if earlier else 0.0)

    def __exit__(self, *_: object) -> None:
        """Close the file, after writing all lines if an earlier write failed."""
        if self._file is None:
            with self._attempts.at(self._path.name):
                write_metrics(self._path, self.history)
        else:
            self._file.close()

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Append a line."""
        seconds = round(time.monotonic() - self._begun, 3)
        line = {"iteration": done, **numbers, "seconds": seconds}
        self.history.append(line)
        if self._file is not None:
            try:
                self._file.write(line)
            except OSError as error:
                # Closing tries to write what could not be written.
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
                self._say(
                    f"{self._path.name} could not be written ({reason_of(error)}); its lines come at the end."
                )
        return False


class Previews(Observer):
    """Writes images of the object to previews/ during the run."""

    def __init__(
        self, folder: Path, scene: Scene, viewpoint: Viewpoint, *, every: int, attempts: Attempts
    ) -> None:
        self._attempts = attempts
        self._folder = folder / "previews"
        self._scene = scene
        self._viewpoint = dataclasses.replace(viewpoint, size=_PREVIEW_SIZE)
        self._azimuths = turntable_azimuths(_PREVIEW_VIEWS)
        self._every = every

    def on_begin(self, *, is_new: bool) -> None:
        """Remove previews of an earlier run, which could be mistaken for this one's, and parts of any."""
        clear_leftovers(self._folder)
        if is_new:
            remove_files(self._folder.glob("iteration_*.png"))

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Write a view sheet every so many iterations."""
        if self._every and done % self._every == 0:
            shown = self._scene.shown(state.scene, done)
            images = render_around(shown, self._azimuths, viewpoint=self._viewpoint)
            sheet = view_sheet(images, self._azimuths, note=f"iteration {done},")
            name = f"iteration_{done:05d}.png"
            with self._attempts.at(f"previews/{name}"):
                save_png(self._folder / name, sheet)
        return False


class Checkpoints(Observer):
    """Saves the state of an unfinished run, so that it can be resumed."""

    def __init__(
        self,
        folder: Path,
        *,
        every_seconds: float | None,
        iterations: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Initialize the observer.

        Args:
            folder: folder of the run.
            every_seconds: seconds between checkpoints, which never take more than a fiftieth of the time; 0
                saves after every iteration, None never.
            iterations: number of iterations of the whole run, whose final state is saved separately.
            say: called with a message when a save fails, and when saving works again.
            clock: returns the time in seconds.
        """
        self._folder = folder
        self._every_seconds = every_seconds
        self._iterations = iterations
        self._say = say
        self._clock = clock
        self._has_failed = False

    def on_begin(self, *, is_new: bool) -> None:
        """Start the timer."""
        self._due = self._clock() + (self._every_seconds or 0.0)

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Save the state if a checkpoint is due."""
        begun = self._clock()
        if self._every_seconds is None or begun < self._due or done >= self._iterations:
            return False
        try:
            save_run(self._folder, state)
        except Exception as error:
            # Orbax has its own exceptions for a full disk.
            if not self._has_failed:
                self._say(
                    f"The state could not be saved ({reason_of(error)}); the run continues and tries again."
                )
            self._has_failed = True
        else:
            if self._has_failed:
                self._say("The state could be saved again.")
            self._has_failed = False
        ended = self._clock()
        if self._every_seconds:
            self._due = ended + max(self._every_seconds, (ended - begun) / _LARGEST_SHARE)
        return False
