"""What watches a run: a bar, metrics.jsonl, pictures from along the way, saved states.

To add one, derive a class from `Observer` and hand it to the run.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

from ge3d_jax.core.files import remove_files
from ge3d_jax.runs.folder import MetricsFile
from ge3d_jax.runs.progress import RunProgress, gentle_interrupt
from ge3d_jax.runs.resume import save_run
from ge3d_jax.scenes.base import Scene
from ge3d_jax.training.compilation import Compilation
from ge3d_jax.training.iterations import HostNumbers
from ge3d_jax.training.state import TrainState
from ge3d_jax.viewer.sheet import save_png
from ge3d_jax.viewer.turntable import Viewpoint, render_around, turntable_azimuths, view_sheet

_PREVIEW_VIEWS = 4
_PREVIEW_SIZE = 128


class Observer(contextlib.AbstractContextManager[Any]):
    """Base of the observers, which does nothing. It is entered before a run and left after it."""

    def __exit__(self, *_: object) -> None:
        """Leave the run."""

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

    def on_compiled(self, compilation: Compilation) -> None:
        """Tell how long it took and what memory it needs."""
        self._progress.say(str(compilation))

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Move the bar."""
        self._progress.update(done, numbers)
        return self._stop.requested


class Metrics(Observer):
    """metrics.jsonl, one line an iteration.

    Attributes:
        history: the lines so far, also those of an earlier part of the run.
    """

    def __init__(self, folder: Path, earlier: list[HostNumbers]) -> None:
        self.history = list(earlier)
        self._file = MetricsFile(folder / "metrics.jsonl", earlier=earlier)
        self._begun = time.monotonic() - (earlier[-1]["seconds"] if earlier else 0.0)

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Append a line."""
        seconds = round(time.monotonic() - self._begun, 3)
        line = {"iteration": done, **numbers, "seconds": seconds}
        self._file.write(line)
        self.history.append(line)
        return False


class Previews(Observer):
    """Pictures of the object from along the way, in previews/."""

    def __init__(self, folder: Path, scene: Scene, viewpoint: Viewpoint, *, every: int) -> None:
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
            save_png(self._folder / f"iteration_{done:05d}.png", sheet)
        return False


class Checkpoints(Observer):
    """The state of a run that is not finished, for going on with it."""

    def __init__(self, folder: Path, *, every: int, iterations: int) -> None:
        self._folder = folder
        self._every = every
        self._iterations = iterations

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Now and then, save the state."""
        if self._every and done % self._every == 0 and done < self._iterations:
            save_run(self._folder, state)
        return False
