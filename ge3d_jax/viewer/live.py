"""The web page of a live run, served by viser: splats to orbit, a loss curve, images, and buttons."""

import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.extras import load_package
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.viewer.framing import find_frame, fitting_distance
from ge3d_jax.viewer.page import page_data
from ge3d_jax.viewer.still import draw_still

# Local connections only: whoever opens the page can stop the run.
_HOST = "localhost"
# Maximum number of points of the curve; a screen cannot show more.
_MOST_POINTS = 500
_FOV = np.deg2rad(40.0)
# Initial direction of the camera: in front, slightly to the left and above.
_DIRECTION = np.array([0.87, 0.35, 0.35])
# Seconds without a movement, after which a camera rests.
_REST = 1.0


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

    def __init__(
        self,
        title: str,
        *,
        port: int,
        can_edit: bool,
        stills: bool = False,
        draw: Callable[..., np.ndarray] = draw_still,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve the page.

        Args:
            title: title of the page, plain text.
            port: the port to serve on; if it is in use, the next free one. 0 picks any free port.
            can_edit: whether the user can request edited views.
            stills: whether the box for still pictures is checked at first. A browser draws splats every
                second even if nothing moves, which without a graphics card takes half a second of a core.
            draw: draws a still picture; see `draw_still`.
            clock: returns the time in seconds.

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
        self._stills = gui.add_checkbox(
            "Still pictures",
            initial_value=stills,
            hint="For a browser without a graphics card: the run draws the object while the camera rests.",
        )
        self._pictures = gui.add_image(
            np.full((1, 1, 3), 255, np.uint8), label="edited views", format="png", visible=False
        )
        self._is_stopping = self._is_edit_wanted = False
        self._stop.on_click(self._on_stop)
        self._edit.on_click(self._on_edit)
        self._splats: Any = None
        # The callbacks run in threads of viser's.
        self._drawing = threading.Lock()
        self._draw = draw
        self._clock = clock
        self._moved = clock()
        self._shown: tuple[np.ndarray, ...] | None = None
        self._stills.on_update(self._on_move)
        self._server.on_client_connect(self._on_connect)

    def _on_connect(self, client: Any) -> None:
        client.camera.on_update(self._on_move)
        self._on_move()

    def _on_move(self, _: object = None) -> None:
        """Let the browsers draw the splats until the cameras rest."""
        with self._drawing:
            self._moved = self._clock()
            if self._shown is not None and self._splats is None:
                self._draw_in_browsers(self._shown)

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
        """Show these splats: in the browsers, without view-dependent color, or in still pictures."""
        data = page_data(gaussians)
        covariances = data.shapes[:, [3, 4, 5, 4, 6, 7, 5, 7, 8]].reshape(-1, 3, 3)
        paints = np.clip(data.paints[:, :4].astype(np.float32), 0.0, 1.0)
        with self._drawing:
            is_first = self._shown is None
            self._shown = (data.shapes[:, :3], covariances, paints[:, :3], paints[:, 3:])
            moved = self._moved
            rests = self._stills.value and self._clock() - moved >= _REST
            if is_first:
                self._place_cameras(gaussians)
            if is_first or not rests:
                self._draw_in_browsers(self._shown)
                return
        clients = self._server.get_clients().values()
        try:
            pictures = [(client, self._seen_by(client.camera, gaussians)) for client in clients]
        except UserError:
            # A camera is so close that there is no memory for a picture, which must not end the run.
            with self._drawing:
                self._draw_in_browsers(self._shown)
            return
        with self._drawing:
            if self._moved == moved:
                self._draw_here(pictures)

    def _seen_by(self, camera: Any, gaussians: Gaussians) -> np.ndarray:
        """Draw the splats as the camera of a client sees them."""
        return self._draw(
            gaussians,
            position=camera.position,
            target=camera.look_at,
            up=camera.up_direction,
            fov=camera.fov,
            window=(max(1, camera.image_width), max(1, camera.image_height)),
        )

    def _place_cameras(self, gaussians: Gaussians) -> None:
        """Place the cameras in front, also those of the clients that connected before there was anything."""
        frame = find_frame(gaussians)
        distance = frame.radius * fitting_distance(float(_FOV), (1, 1))
        clients = [client.camera for client in self._server.get_clients().values()]
        for camera in (self._server.initial_camera, *clients):
            camera.fov = float(_FOV)
            # The order matters: moving a client's camera moves its look-at point along.
            camera.position = frame.center + distance * _DIRECTION
            camera.look_at = frame.center

    def _draw_in_browsers(self, arrays: tuple[np.ndarray, ...]) -> None:
        """Have the browsers draw splats in place of pictures."""
        if self._splats is not None:
            self._splats.set_gaussians(*arrays)
            return
        self._splats = self._server.scene.add_gaussian_splats("/object", *arrays)
        for client in self._server.get_clients().values():
            client.scene.set_background_image(None)

    def _draw_here(self, pictures: Sequence[tuple[Any, np.ndarray]]) -> None:
        """Show a picture to each client in place of the splats: hidden ones would still cost it time."""
        for client, picture in pictures:
            client.scene.set_background_image(picture, format="jpeg", jpeg_quality=90)
        if self._splats is not None:
            self._splats.remove()
            self._splats = None

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
