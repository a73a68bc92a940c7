"""The page served by viser, seen by a client without a browser."""

import socket
import time
import urllib.request

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.viewer.framing import find_frame, fitting_distance
from ge3d_jax.viewer.live import ViserPage, thinned

viser = pytest.importorskip("viser", reason="viser is not installed")
messages = pytest.importorskip("viser._messages")
msgspec = pytest.importorskip("msgspec")
Subprotocol = pytest.importorskip("websockets").Subprotocol
zstandard = pytest.importorskip("zstandard")

# How what is compressed and a picture begin.
ZSTD, JPEG = b"\x28\xb5\x2f\xfd", b"\xff\xd8\xff"


@pytest.fixture
def page(capsys):
    page = ViserPage("a red mushroom", port=0, can_edit=True)
    yield page
    page.close()
    # viser itself prints nothing.
    assert capsys.readouterr() == ("", "")


def splats(count):
    return make_gaussians(
        jnp.linspace(0.0, 2.0, 3 * count).reshape(count, 3),
        jnp.full((count, 3), 0.75),
        jnp.full((count, 3), 0.2),
        jnp.full(count, 0.4),
        capacity=count + 2,
    )


def wait_for(condition):
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in five seconds")


class Client:
    """Connects and sends messages like a browser."""

    def __init__(self, address):
        from websockets.sync.client import connect

        protocol = Subprotocol(f"viser-v{viser.__version__}")
        self.socket = connect(address.replace("http", "ws"), subprotocols=[protocol], max_size=None)

    def send(self, message):
        self.socket.send(msgspec.msgpack.encode(message.as_serializable_dict()))

    def look(self):
        """Send the camera position, whereupon the client counts as a browser."""
        self.send(
            messages.ViewerCameraMessage(
                wxyz=(1.0, 0.0, 0.0, 0.0),
                position=(3.0, 0.0, 0.0),
                fov=0.7,
                near=0.01,
                far=100.0,
                image_height=600,
                image_width=800,
                look_at=(0.0, 0.0, 0.0),
                up_direction=(0.0, 0.0, 1.0),
            )
        )

    def set(self, handle, value):
        """Use a checkbox or a button."""
        self.send(messages.GuiUpdateMessage(handle._impl.uuid, {"value": value}))


def test_it_is_served_and_knows_whether_it_is_watched(page):
    with urllib.request.urlopen(page.address) as answer:
        assert b"<html" in answer.read()
    assert not page.is_watched
    # Speculative connections that a browser opens and drops are ignored.
    host, port = page.address.removeprefix("http://").split(":")
    socket.create_connection((host, int(port))).close()
    client = Client(page.address)
    client.look()
    wait_for(lambda: page.is_watched)
    client.socket.close()
    wait_for(lambda: not page.is_watched)


def test_the_person_pauses_edits_and_stops(page):
    client = Client(page.address)
    client.look()
    assert not (page.is_pausing or page.is_stopping or page.take_edit_request())
    for value in (True, False):
        client.set(page._pause, value)
        wait_for(lambda value=value: page.is_pausing is value)
    client.set(page._edit, True)
    wait_for(page.take_edit_request)
    assert not page.take_edit_request() and not page.is_stopping
    client.set(page._stop, True)
    wait_for(lambda: page.is_stopping)
    client.socket.close()


def test_it_holds_the_splats_that_were_last_shown(page):
    for count in (3, 5):
        page.show_splats(splats(count))
        shown = page._splats
        np.testing.assert_allclose(shown.centers, splats(count).positions[:count], atol=1e-6)
        np.testing.assert_allclose(shown.covariances, np.tile(0.04 * np.eye(3), (count, 1, 1)), atol=1e-4)
        assert (shown.rgbs == 191).all() and (abs(shown.opacities.astype(int) - 102) <= 1).all()
    stretched = splats(5)
    stretched = stretched.replace(
        log_scales=jnp.log(jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.5, (7, 3)), jnp.float32)),
        quaternions=jnp.asarray(np.random.default_rng(1).normal(size=(7, 4)), jnp.float32),
    )
    page.show_splats(stretched)
    turns = Rotation.from_quat(stretched.quaternions[:5], scalar_first=True).as_matrix()
    axes = turns * np.exp(np.asarray(stretched.log_scales)[:5, None, :])
    np.testing.assert_allclose(page._splats.covariances, axes @ axes.transpose(0, 2, 1), atol=1e-3)
    # The camera was placed for the first splats: in front of them, far enough to see all.
    camera, frame = page._server.initial_camera, find_frame(splats(3))
    np.testing.assert_allclose(camera.look_at, frame.center, atol=1e-6)
    distance = frame.radius * fitting_distance(float(np.deg2rad(40)), (1, 1))
    np.testing.assert_allclose(camera.position - frame.center, distance * np.array([0.87, 0.35, 0.35]))


def test_a_person_who_came_before_the_first_splats_is_moved_in_front_of_them(page: ViserPage) -> None:
    client = Client(page.address)
    client.look()
    wait_for(lambda: page.is_watched)
    page.show_splats(splats(3))
    (seen,) = page._server.get_clients().values()
    frame, first = find_frame(splats(3)), page._server.initial_camera
    np.testing.assert_allclose(seen.camera.look_at, frame.center, atol=1e-6)
    np.testing.assert_allclose(seen.camera.position, first.position, atol=1e-6)
    client.socket.close()


def received(client):
    """What the page sent since the last call."""
    messages = []
    while True:
        try:
            header, magic, packed = client.socket.recv(timeout=0.3).partition(ZSTD)
        except TimeoutError:
            return b"".join(messages)
        # Long ones are compressed, behind a header.
        unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(magic + packed) if packed else b""
        messages.append(header + unpacked)


def test_a_still_picture_takes_the_place_of_splats_while_the_camera_rests():
    now = [0.0]
    page = ViserPage("a red mushroom", port=0, can_edit=False, stills=True, clock=lambda: now[0])
    client = Client(page.address)
    client.look()
    wait_for(lambda: page.is_watched)
    # The first splats are always drawn by the browser, which is told where to look at them from.
    now[0] = 5.0
    page.show_splats(splats(3))
    assert page._splats is not None and JPEG not in received(client)
    now[0] = 10.0
    page.show_splats(splats(5))
    assert page._splats is None and JPEG in received(client)
    # Whoever turns the object sees splats at once, the newest.
    client.look()
    wait_for(lambda: page._splats is not None)
    assert len(page._splats.centers) == 5
    sent = received(client)
    assert b"BackgroundImageMessage" in sent and JPEG not in sent
    now[0] = 10.9
    page.show_splats(splats(3))
    assert page._splats is not None and JPEG not in received(client)
    now[0] = 11.0
    page.show_splats(splats(3))
    assert page._splats is None and JPEG in received(client)
    # A newcomer has no picture yet.
    other = Client(page.address)
    other.look()
    wait_for(lambda: page._splats is not None)
    now[0] = 20.0
    page.show_splats(splats(3))
    assert page._splats is None
    client.set(page._stills, False)
    wait_for(lambda: page._splats is not None)
    now[0] = 30.0
    page.show_splats(splats(3))
    assert page._splats is not None
    client.socket.close()
    other.socket.close()
    page.close()


def test_a_camera_too_close_for_a_picture_leaves_the_drawing_to_the_browser():
    now, seen = [0.0], []

    def draw(gaussians, **camera):
        seen.append(camera)
        raise UserError("There is no memory for so many tiles.")

    page = ViserPage("a red mushroom", port=0, can_edit=False, stills=True, draw=draw, clock=lambda: now[0])
    client = Client(page.address)
    client.look()
    wait_for(lambda: page.is_watched)
    page.show_splats(splats(3))
    now[0] = 5.0
    page.show_splats(splats(5))
    assert len(page._splats.centers) == 5 and JPEG not in received(client)
    (camera,) = seen
    # What the page asked for at first, and the window of the client.
    assert camera["window"] == (800, 600) and camera["up"].tolist() == [0.0, 0.0, 1.0]
    np.testing.assert_allclose(camera["target"], find_frame(splats(3)).center, atol=1e-6)
    assert camera["position"][0] > 2.0 and camera["fov"] == pytest.approx(np.deg2rad(40.0))
    client.socket.close()
    page.close()


def test_the_curve_has_its_ends_and_not_too_many_points(page):
    iterations = list(range(1, 2001))
    page.plot(iterations, [float(-number) for number in iterations])
    x, y = page._plot.data
    assert page._plot.visible and len(x) == 500 and (x[0], x[-1]) == (1, 2000)
    np.testing.assert_array_equal(y, -x)
    assert thinned(0).tolist() == [] and thinned(1).tolist() == [0] and thinned(3).tolist() == [0, 1, 2]
    assert thinned(5, most=3).tolist() == [0, 2, 4]


def test_pictures_and_a_line_are_shown(page):
    sheet = np.full((4, 6, 3), 90, np.uint8)
    page.show_pictures(sheet)
    page.tell("iteration 3")
    assert page._pictures.visible and page._status.content == "iteration 3"
    np.testing.assert_array_equal(page._pictures.image, sheet)


def test_another_port_is_taken_where_one_is_in_use(page):
    port = int(page.address.rpartition(":")[2])
    other = ViserPage("another", port=port, can_edit=False)
    assert other.address != page.address and not other._edit.visible
    other.close()
