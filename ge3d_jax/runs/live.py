"""Live view of a run in the browser: its splats, its loss, edited views, and a pause button."""

import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ge3d_jax.core.extras import load_package
from ge3d_jax.runs.observers import Observer, Watched
from ge3d_jax.runs.run import Run
from ge3d_jax.training.compilation import Compilation
from ge3d_jax.training.distillation import Distillation
from ge3d_jax.training.iterations import HostNumbers
from ge3d_jax.training.reconstruction import cameras_at, edited_views
from ge3d_jax.training.state import TrainState
from ge3d_jax.viewer.live import LivePage, ViserPage
from ge3d_jax.viewer.sheet import enlarge, to_uint8
from ge3d_jax.viewer.turntable import turntable_azimuths, view_sheet

DEFAULT_PORT = 8080
# Minimum seconds between page updates, since a browser without a GPU needs half a second of a core to draw
# one, and the largest fraction of this process's time to spend on them.
_LEAST_SECONDS = 5.0
_LARGEST_SHARE = 0.02
# Polling interval of a paused run, seconds.
_NAP = 0.1
_EDITED_VIEWS = 4
_EDITED_SIZE = 160


class OpenPage(Protocol):
    """Opens the page of a run: `ViserPage`, or a stand-in for tests."""

    def __call__(self, title: str, *, port: int, can_edit: bool) -> LivePage:
        """See `ViserPage`."""


@dataclasses.dataclass
class _Last:
    """The latest state of the run, for display."""

    done: int
    numbers: HostNumbers
    state: TrainState


def edit_views(run: Run, state: TrainState, azimuths: np.ndarray) -> np.ndarray:
    """Let the model edit views of a distilled object, as a reconstruction stage at this point would.

    Args:
        run: a run of a `Distillation`.
        state: the current state of the run.
        azimuths: (V,) radians; the cameras use the mean of the run's range of polar angles.

    Returns:
        Images, float32 (V, H, W, 3) in [0, 1].
    """
    task = run.task
    assert isinstance(task, Distillation)
    polar = np.full(len(azimuths), np.deg2rad(np.mean(task.config.cameras.polar_degrees)))
    cameras = cameras_at(task.config, (polar, azimuths))
    return edited_views(task, state, run.context, cameras, azimuths)


class LiveView(Observer):
    """An observer that serves a page showing the run. It costs nothing while nobody has the page open."""

    def __init__(
        self,
        port: int = DEFAULT_PORT,
        *,
        open_page: OpenPage = ViserPage,
        edit: Callable[[Run, TrainState, np.ndarray], np.ndarray] = edit_views,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare the page, which is served once there is a run.

        Args:
            port: the port to serve the page on; see `ViserPage`.
            open_page: opens the page.
            edit: edits views of the object; see `edit_views`.
            clock: returns the time in seconds.
            wait: sleeps for the given number of seconds.

        Raises:
            UserError: viser is not installed.
        """
        if open_page is ViserPage:
            load_package("viser", wanted_by="--live")
        self._port = port
        self._open_page = open_page
        self._edit = edit
        self._clock = clock
        self._wait = wait
        self._page: LivePage | None = None

    def on_run(self, watched: Watched) -> None:
        """Serve the page and print its address."""
        run = watched.run
        self._watched = watched
        self._iterations = [int(line["iteration"]) for line in run.history if "loss" in line]
        self._losses = [float(line["loss"]) for line in run.history if "loss" in line]
        title = str(run.description.get("prompt", run.folder.name))
        page = self._open_page(title, port=self._port, can_edit=isinstance(run.task, Distillation))
        self._page = page
        watched.say(f"Live view: {page.address}")

    def __exit__(self, *_: object) -> None:
        """Close the page."""
        if self._page is not None:
            self._page.close()

    def on_compiled(self, compilation: Compilation) -> None:
        """Update the status."""
        self._told.tell("Running the first iteration.")

    def on_begin(self, *, is_new: bool) -> None:
        """Schedule the first update for as soon as there is something to see."""
        self._due = self._previous = self._clock()
        self._seconds: float | None = None

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Show the state if an update is due, and wait while the user has paused the run."""
        page, begun = self._told, self._clock()
        # A running mean over the last few iterations; the first one is atypical.
        took = begun - self._previous
        self._seconds = took if self._seconds is None or done < 3 else 0.8 * self._seconds + 0.2 * took
        if "loss" in numbers:
            self._iterations.append(done)
            self._losses.append(float(numbers["loss"]))
        last = _Last(done, numbers, state)
        if page.is_watched and begun >= self._due:
            self._renew(last)
            ended = self._clock()
            self._due = ended + max(_LEAST_SECONDS, (ended - begun) / _LARGEST_SHARE)
        self._answer(last)
        self._previous = self._clock()
        return page.is_stopping

    @property
    def _told(self) -> LivePage:
        """The page of the run."""
        assert self._page is not None
        return self._page

    def _renew(self, last: _Last, *, note: str = "") -> None:
        """Update the page."""
        page, run = self._told, self._watched.run
        page.show_splats(run.task.scene.shown(last.state.scene, last.done))
        if self._losses:
            page.plot(self._iterations, self._losses)
        told = [f"iteration {last.done} of {run.last}"]
        told += [f"loss {last.numbers['loss']:.4g}"] if "loss" in last.numbers else []
        told += [f"{last.numbers['splats']} splats"] if "splats" in last.numbers else []
        told += [f"{self._seconds:.2f} s an iteration"] if self._seconds else []
        page.tell(" · ".join([*told, *([note] if note else [])]))

    def _answer(self, last: _Last) -> None:
        """Handle the user's requests, and wait while the run is paused."""
        page, has_waited = self._told, False
        while True:
            if page.take_edit_request():
                self._show_edits(last)
            if not page.is_pausing or page.is_stopping or self._watched.is_stopping():
                break
            if not has_waited:
                has_waited = True
                self._renew(last, note="paused")
            self._wait(_NAP)

    def _show_edits(self, last: _Last) -> None:
        """Show the model's edits of some views of the current object."""
        page = self._told
        page.tell(
            f"iteration {last.done} · editing views; the first time, this compiles for as long as a run does"
        )
        azimuths = turntable_azimuths(_EDITED_VIEWS)
        edited = self._edit(self._watched.run, last.state, azimuths)
        pictures = np.stack([enlarge(to_uint8(picture), minimum=_EDITED_SIZE) for picture in edited])
        page.show_pictures(view_sheet(pictures, azimuths, columns=2, note=f"iteration {last.done},"))
        self._renew(last)
