"""What watches a run: a bar, metrics.jsonl, pictures from along the way, saved states.

To add one, derive a class from `Observer`, in a file of its own, and hand it to the run.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ge3d_jax.core.files import remove_files
from ge3d_jax.runs.attempts import Attempts, reason_of
from ge3d_jax.runs.folder import MetricsFile
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
# How often a state is saved, and the largest share of the time that may take.
SAVE_SECONDS = 30.0
_LARGEST_SHARE = 0.02


@dataclasses.dataclass(frozen=True)
class Watched:
    """What an observer is told of the run that it watches.

    Attributes:
        run: the run.
        attempts: to write what the run can do without.
        say: prints a line for the person.
        is_stopping: whether the person has asked the run to stop.
    """

    run: "Run"
    attempts: Attempts
    say: Callable[[str], None]
    is_stopping: Callable[[], bool]


class Observer(contextlib.AbstractContextManager[Any]):
    """Base of the observers, which does nothing. It is entered before a run and left after it."""

    def __exit__(self, *_: object) -> None:
        """Leave the run."""

    def on_run(self, watched: Watched) -> None:
        """This run is to be watched; it is about to be compiled."""

    def on_compiled(self, compilation: Compilation) -> None:
        """An iteration was compiled and fits the device."""

    def on_begin(self, *, is_new: bool) -> None:
        """The first iteration is about to run; `is_new` unless the run goes on with an earlier one."""

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """`done` iterations are through; whether to stop here. The state is lent until this returns."""
        return False


class Bar(Observer):
    """A progress bar, and Ctrl-C, which stops the run after the iteration at hand."""

    def __init__(self, total: int, *, enabled: bool, doing: str) -> None:
        self._progress = RunProgress(total, enabled=enabled, doing=doing)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Bar":
        """Show the bar and take Ctrl-C."""
        self._stack.enter_context(self._progress)
        self._stop = self._stack.enter_context(gentle_interrupt(self._progress))
        return self

    def __exit__(self, *_: object) -> None:
        """Give both back."""
        self._stack.close()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.say(text)

    def warn(self, text: str) -> None:
        """Print a line of what went wrong, also where there is no bar."""
        self._progress.warn(text)

    def is_stopping(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._stop.requested

    def on_compiled(self, compilation: Compilation) -> None:
        """Tell how long it took and what memory it needs."""
        self.say(str(compilation))

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Move the bar."""
        self._progress.update(done, numbers)
        return self.is_stopping()


class Metrics(Observer):
    """metrics.jsonl, one line an iteration.

    Where the disk is full the lines are kept, and written once there is room.

    Attributes:
        history: the lines so far, also those of an earlier part of the run.
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
        """Close the file, with all lines where there is room now."""
        if self._file is None:
            with self._attempts.at(self._path.name):
                self._write_anew()
        if self._file is not None:
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
                self._file.close()
                self._file = None
                self._say(
                    f"{self._path.name} could not be written ({reason_of(error)}); its lines come at the end."
                )
        return False

    def _write_anew(self) -> None:
        self._file = MetricsFile(self._path, earlier=self.history[:-1])
        self._file.write(self.history[-1])


class Previews(Observer):
    """Pictures of the object from along the way, in previews/."""

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
        """Remove those of an earlier run, which would pass for this one's."""
        if is_new:
            remove_files(self._folder.glob("iteration_*.png"))

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Now and then, write a sheet of views."""
        if self._every and done % self._every == 0:
            shown = self._scene.shown(state.scene, done)
            images = render_around(shown, self._azimuths, viewpoint=self._viewpoint)
            sheet = view_sheet(images, self._azimuths, note=f"iteration {done},")
            name = f"iteration_{done:05d}.png"
            with self._attempts.at(f"previews/{name}"):
                save_png(self._folder / name, sheet)
        return False


class Checkpoints(Observer):
    """The state of a run that is not finished, for going on with it."""

    def __init__(
        self,
        folder: Path,
        *,
        every_seconds: float | None,
        iterations: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Save now and then.

        Args:
            folder: of the run.
            every_seconds: how often, though for no more than a fiftieth of the time; 0 saves after each
                iteration, None never.
            iterations: of the whole run, whose end is saved by itself.
            say: told where the state could not be saved, and that it was after all.
            clock: seconds.
        """
        self._folder = folder
        self._every_seconds = every_seconds
        self._iterations = iterations
        self._say = say
        self._clock = clock
        self._has_failed = False

    def on_begin(self, *, is_new: bool) -> None:
        """Count the time from here."""
        self._due = self._clock() + (self._every_seconds or 0.0)

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Save the state when it is time."""
        begun = self._clock()
        if self._every_seconds is None or begun < self._due or done >= self._iterations:
            return False
        try:
            save_run(self._folder, state)
        except Exception as error:
            # Orbax has errors of its own for a full disk.
            if not self._has_failed:
                self._say(
                    f"The state could not be saved ({reason_of(error)}); the run goes on and tries again."
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
