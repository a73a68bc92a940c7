"""The web page of a live run, served by viser: splats to orbit, a loss curve, images, and buttons."""

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ge3d_jax.core.extras import load_package
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.viewer.framing import find_frame, fitting_distance
from ge3d_jax.viewer.page import page_data

# Local connections only: whoever opens the page can stop the run.
_HOST = "localhost"
# Maximum number of points of the curve; a screen cannot show more.
_MOST_POINTS = 500
_FOV = np.deg2rad(40.0)
# Initial direction of the camera: in front, slightly to the left and above.
_DIRECTION = np.array([0.87, 0.35, 0.35])


class LivePage(Protocol):
    """The interface of a live page: it shows a run and collects the user's requests."""

    @property
    def address(self) -> str:
        """The URL of the page."""

    @property
    def is_watched(self) -> bool:
        """Whether anyone has the page open."""

    @property
    def is_pausing(self) -> bool:
        """Whether the user wants the run to pause."""

    @property
    def is_stopping(self) -> bool:
        """Whether the user wants the run to stop."""

    def take_edit_request(self) -> bool:
        """Whether the user has requested edited views since the last call."""

    def tell(self, text: str) -> None:
        """Show a one-line status."""

    def show_splats(self, gaussians: Gaussians) -> None:
        """Show these splats in place of earlier ones."""

    def plot(self, iterations: Sequence[int], losses: Sequence[float]) -> None:
        """Show the loss over the iterations."""

    def show_pictures(self, sheet: np.ndarray) -> None:
        """Show a sheet of edited views, uint8 (H, W, 3)."""

    def close(self) -> None:
        """Stop serving the page."""


def thinned(count: int, most: int = _MOST_POINTS) -> np.ndarray:
    """Indices of at most `most` of `count` points, evenly spaced, including the first and the last."""
    return (
        np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)) if count else np.arange(0)
    )


class ViserPage:
    """A `LivePage` served by viser, in threads of its own."""

    def __init__(self, title: str, *, port: int, can_edit: bool) -> None:
        """Serve the page.

        Args:
            title: title of the page, plain text.
            port: the port to serve on; if it is in use, the next free one. 0 picks any free port.
            can_edit: whether the user can request edited views.

        Raises:
            UserError: viser is not installed.
        """
        viser = load_package("viser", wanted_by="--live")
        # Browsers open connections ahead of time and drop them, which is logged as an error with a traceback.
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
        # viser prints to standard output at startup and shutdown, regardless of `verbose`.
        with contextlib.redirect_stdout(io.StringIO()):
            self._server = viser.ViserServer(host=_HOST, port=port, label=title, verbose=False)
        gui = self._server.gui
        # The share button would publish the page through a server run by viser's authors.
        gui.configure_theme(show_logo=False, show_share_button=False, control_width="large")
        self._server.scene.set_up_direction("+z")
        self._status = gui.add_markdown("compiling …")
        self._pause = gui.add_checkbox("Pause", initial_value=False)
        self._stop = gui.add_button("Stop and write the object")
        nothing = np.zeros(1)
        self._plot = gui.add_uplot(
            data=(nothing, nothing),
            series=({"label": "iteration"}, {"label": "loss", "stroke": "#c33", "width": 1}),
            scales={"x": {"time": False, "auto": True}, "y": {"auto": True}},
            title="loss",
            aspect=2.0,
            visible=False,
        )
        self._edit = gui.add_button("Edit four views now", visible=can_edit)
        self._pictures = gui.add_image(
            np.full((1, 1, 3), 255, np.uint8), label="edited views", format="png", visible=False
        )
        self._is_stopping = self._is_edit_wanted = False
        self._stop.on_click(self._on_stop)
        self._edit.on_click(self._on_edit)
        self._splats: Any = None

    def _on_stop(self, _: object) -> None:
        self._is_stopping = True

    def _on_edit(self, _: object) -> None:
        self._is_edit_wanted = True

    @property
    def address(self) -> str:
        """The URL of the page."""
        return f"http://{_HOST}:{self._server.get_port()}"

    @property
    def is_watched(self) -> bool:
        """Whether a browser has the page open."""
        return bool(self._server.get_clients())

    @property
    def is_pausing(self) -> bool:
        """Whether the pause box is checked."""
        return self._pause.value

    @property
    def is_stopping(self) -> bool:
        """Whether the stop button was pressed."""
        return self._is_stopping

    def take_edit_request(self) -> bool:
        """Whether the edit button was pressed since the last call."""
        wanted, self._is_edit_wanted = self._is_edit_wanted, False
        return wanted

    def tell(self, text: str) -> None:
        """Show a status line above the buttons."""
        self._status.content = text

    def show_splats(self, gaussians: Gaussians) -> None:
        """Show these splats without view-dependent color, which viser does not support."""
        data = page_data(gaussians)
        covariances = data.shapes[:, [3, 4, 5, 4, 6, 7, 5, 7, 8]].reshape(-1, 3, 3)
        paints = np.clip(data.paints[:, :4].astype(np.float32), 0.0, 1.0)
        arrays = (data.shapes[:, :3], covariances, paints[:, :3], paints[:, 3:])
        if self._splats is not None:
            self._splats.set_gaussians(*arrays)
            return
        frame = find_frame(gaussians)
        distance = frame.radius * fitting_distance(float(_FOV), (1, 1))
        # Include the clients that connected before there was anything to see.
        clients = [client.camera for client in self._server.get_clients().values()]
        for camera in (self._server.initial_camera, *clients):
            camera.fov = float(_FOV)
            # The order matters: moving a client's camera moves its look-at point along.
            camera.position = frame.center + distance * _DIRECTION
            camera.look_at = frame.center
        self._splats = self._server.scene.add_gaussian_splats("/object", *arrays)

    def plot(self, iterations: Sequence[int], losses: Sequence[float]) -> None:
        """Show the loss over the iterations."""
        kept = thinned(len(iterations))
        self._plot.data = (np.asarray(iterations, float)[kept], np.asarray(losses, float)[kept])
        self._plot.visible = True

    def show_pictures(self, sheet: np.ndarray) -> None:
        """Show the sheet below the buttons."""
        self._pictures.image = sheet
        self._pictures.visible = True

    def close(self) -> None:
        """Stop serving the page."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()
