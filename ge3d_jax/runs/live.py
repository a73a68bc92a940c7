"""A run in the browser while it goes on: its splats, its loss, edited views, a pause."""

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
# The page is renewed at most so often, for a browser without a graphics card needs half a second of a core to
# draw it, and for no more than this share of the time on our side.
_LEAST_SECONDS = 5.0
_LARGEST_SHARE = 0.02
# How long a waiting run takes to notice that it may go on, seconds.
_NAP = 0.1
_EDITED_VIEWS = 4
_EDITED_SIZE = 160


class OpenPage(Protocol):
    """Opens the page of a run; `ViserPage`, or what a test has in its place."""

    def __call__(self, title: str, *, port: int, can_edit: bool) -> LivePage:
        """See `ViserPage`."""


@dataclasses.dataclass
class _Last:
    """What was last there to show."""

    done: int
    numbers: HostNumbers
    state: TrainState


def edit_views(run: Run, state: TrainState, azimuths: np.ndarray) -> np.ndarray:
    """What the model makes of views of a distilled object, as in a reconstructive stage at this point.

    Args:
        run: of a `Distillation`.
        state: of the run now.
        azimuths: (V,) radians; the cameras are in the middle of the polar angles that the run looks from.

    Returns:
        Pictures, float32 (V, H, W, 3) in [0, 1].
    """
    task = run.task
    assert isinstance(task, Distillation)
    polar = np.full(len(azimuths), np.deg2rad(np.mean(task.config.cameras.polar_degrees)))
    cameras = cameras_at(task.config, (polar, azimuths))
    return edited_views(task, state, run.context, cameras, azimuths)


class LiveView(Observer):
    """Serves a page that shows the run. While nobody has it open it costs nothing."""

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
            port: where to serve it; see `ViserPage`.
            open_page: serves it.
            edit: what the model makes of views; see `edit_views`.
            clock: seconds.
            wait: lets so many seconds pass.

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
        """Serve the page and tell where."""
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
        """Tell so."""
        self._told.tell("The first iteration runs.")

    def on_begin(self, *, is_new: bool) -> None:
        """Renew the page as soon as there is something to see."""
        self._due = self._previous = self._clock()
        self._seconds: float | None = None

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Show the state where it is time to, and wait while the person wants that."""
        page, begun = self._told, self._clock()
        # A running mean over some iterations; the first one is not like the others.
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
        """Show what there is."""
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
        """Do what the person asks for, and wait as long as they want that."""
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
        """Show what the model makes of some views now."""
        page = self._told
        page.tell(
            f"iteration {last.done} · editing views; the first time this compiles as long as a run does"
        )
        azimuths = turntable_azimuths(_EDITED_VIEWS)
        edited = self._edit(self._watched.run, last.state, azimuths)
        pictures = np.stack([enlarge(to_uint8(picture), minimum=_EDITED_SIZE) for picture in edited])
        page.show_pictures(view_sheet(pictures, azimuths, columns=2, note=f"iteration {last.done},"))
        self._renew(last)
