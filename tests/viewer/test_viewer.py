"""The page of an object in a real browser: it matches the renderer, and its controls work."""

import base64
import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.viewer.framing import orbit_cameras
from ge3d_jax.viewer.page import save_viewer
from ge3d_jax.viewer.turntable import Viewpoint, render_each
from tests.viewer.browser import needs_browser, visit

SIZE = 128
AZIMUTHS = np.deg2rad([10.0, 130.0, 250.0])
VIEWPOINT = Viewpoint(radius=3.5, polar=float(np.deg2rad(65.0)), fov=0.5, size=SIZE)
# WebGL without a graphics card.
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--force-device-scale-factor=1")
SMALL = f"""
  canvas.style.width = canvas.style.height = "{SIZE}px";
  camera = start();
  turning = false;
"""
PICTURES = f"""{SMALL}
  tell({AZIMUTHS.tolist()}.map(azimuth => {{
    camera = {{...start(), azimuth}};
    draw();
    return canvas.toDataURL();
  }}));
"""


def random_object(degree, *, thickness=0.1, count=300):
    """Overlapping splats all over a ball, with view-dependent color."""
    rng = np.random.default_rng(degree)
    directions = rng.normal(size=(count, 3))
    places = 0.7 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    gaussians = make_gaussians(
        jnp.asarray(places, jnp.float32),
        jnp.asarray(rng.uniform(0.1, 0.9, (count, 3)), jnp.float32),
        jnp.asarray(rng.uniform(0.2, 1.0, (count, 3)) * thickness, jnp.float32),
        jnp.asarray(rng.uniform(0.3, 0.95, count), jnp.float32),
        capacity=count + 5,
        sh_degree=degree,
    )
    quaternions = jnp.asarray(rng.normal(size=(count + 5, 4)), jnp.float32)
    sh = jnp.asarray(rng.normal(size=gaussians.sh.shape) * 0.3, jnp.float32)
    return gaussians.replace(quaternions=quaternions, sh=gaussians.sh.at[:, 1:].set(sh[:, 1:]))


def pictures_of(page):
    """The page's pictures, float (3, SIZE, SIZE, 3) in [0, 1], on white."""
    pictures = []
    for line in visit(page, PICTURES, options=SOFTWARE):
        png = Image.open(io.BytesIO(base64.b64decode(line.partition(",")[2]))).convert("RGBA")
        white = Image.new("RGBA", png.size, "white")
        pictures.append(np.asarray(Image.alpha_composite(white, png).convert("RGB"), float) / 255.0)
    return np.stack(pictures)


def renders_of(gaussians, *, up="z", antialiased=False):
    cameras = orbit_cameras(
        AZIMUTHS,
        polar=VIEWPOINT.polar,
        distance=VIEWPOINT.radius,
        fov=VIEWPOINT.fov,
        size=(SIZE, SIZE),
        up=up,
    )
    renders = render_each(gaussians, cameras, background=(1.0, 1.0, 1.0), antialiased=antialiased)
    return np.stack(list(renders)) / 255.0


def decibels(pictures, renders):
    """PSNR of each picture."""
    return -10.0 * np.log10(np.mean((pictures - renders) ** 2, axis=(1, 2, 3)))


@needs_browser
@pytest.mark.parametrize(("degree", "up", "antialiased"), [(1, "z", False), (2, "y", False), (3, "-y", True)])
def test_it_draws_what_the_renderer_draws_from_three_sides(tmp_path, degree, up, antialiased):
    # Antialiasing matters for splats thinner than a pixel, which is 0.014 wide here.
    gaussians = random_object(degree, thickness=0.015 if antialiased else 0.1)
    page = tmp_path / "viewer.html"
    save_viewer(page, gaussians, title="a ball", viewpoint=VIEWPOINT, up=up, antialiased=antialiased)
    pictures, renders = pictures_of(page), renders_of(gaussians, up=up, antialiased=antialiased)
    assert decibels(pictures, renders).min() > 40.0
    # Each of these errors would be visible: a different side, no view-dependent color, no compensation.
    plain = gaussians.replace(sh=gaussians.sh[:, :1])
    others = [renders[[1, 2, 0]], renders_of(plain, up=up, antialiased=antialiased)]
    if antialiased:
        others.append(renders_of(gaussians, up=up))
    for other in others:
        assert decibels(pictures, other).max() < 35.0


@needs_browser
def test_it_is_moved_by_mouse_fingers_and_keys(tmp_path):
    page = tmp_path / "viewer.html"
    save_viewer(page, random_object(0, count=5), title="a ball", viewpoint=VIEWPOINT)
    lines = visit(
        page,
        SMALL
        + """
  const notes = [];
  const note = () => {
    const values = [camera.azimuth, camera.polar, camera.radius, ...camera.target, Number(turning)];
    notes.push(values.map(value => value.toFixed(4)).join(" "));
    camera = start();
    turning = false;
  };
  canvas.setPointerCapture = () => {};
  const point = (type, pointerId, clientX, clientY, more) =>
    canvas.dispatchEvent(new PointerEvent(type, {pointerId, clientX, clientY, ...more}));
  const drag = (from, to, more) => {
    point("pointerdown", 1, ...from, more);
    point("pointermove", 1, ...to, more);
    point("pointerup", 1, ...to, more);
    note();
  };
  const press = (key, more) => {
    window.dispatchEvent(new KeyboardEvent("keydown", {key, ...more}));
    note();
  };
  drag([10, 10], [20, 15], {buttons: 1});
  drag([10, 10], [20, 15], {buttons: 2});
  drag([10, 10], [20, 15], {buttons: 1, shiftKey: true});
  // Two fingers go apart to twice their distance, and their middle to the right and down.
  point("pointerdown", 1, 40, 40);
  point("pointerdown", 2, 60, 40);
  point("pointermove", 2, 80, 40);
  point("pointermove", 1, 40, 40);
  point("pointerup", 1, 40, 40);
  note();
  // The one that stays turns the object again.
  point("pointermove", 2, 90, 40);
  point("pointerup", 2, 90, 40);
  note();
  const roll = deltaY => {
    canvas.dispatchEvent(new WheelEvent("wheel", {deltaY}));
    note();
  };
  roll(100); roll(-100); roll(1e5); roll(-1e5);
  drag([10, 10], [10, 5000], {buttons: 1});
  drag([10, 5000], [10, 10], {buttons: 1});
  for (const key of ["ArrowLeft", "ArrowDown", "+", "-", " ", "x"]) press(key);
  press("ArrowRight", {shiftKey: true});
  camera.azimuth = 2;
  press("r");
  press("b");
  press("h");
  notes.push([[64, 128], [128, 64]].map(size => focalLength(...size) / focalLength(64, 64)).join(" "));
  notes.push(document.body.className);
  tell(notes);
""",
        options=SOFTWARE,
    )
    *moved, focal_lengths, classes = lines
    # The object fits into the shorter side.
    assert focal_lengths == "1 1"
    states = np.array([line.split() for line in moved], float)
    begun = np.array([0.0, VIEWPOINT.polar, VIEWPOINT.radius, 0.0, 0.0, 0.0, 0.0])
    # World units per pixel at the target; in front, the camera's right is +y and its down is mostly -z.
    unit = VIEWPOINT.radius * np.tan(0.5 * VIEWPOINT.fov) / (0.5 * SIZE)
    down = np.array([np.cos(VIEWPOINT.polar), 0.0, -np.sin(VIEWPOINT.polar)])
    right = np.array([0.0, 1.0, 0.0])

    def changed(azimuth=0.0, polar=0.0, zoom=1.0, pan=(0.0, 0.0), turning=0.0):
        target = -unit * (pan[0] * right + pan[1] * down)
        return [azimuth, begun[1] + polar, begun[2] * zoom, *target, turning]

    wanted = [
        changed(azimuth=-0.08, polar=-0.04),
        changed(pan=(10, 5)),
        changed(pan=(10, 5)),
        # After zooming: at half the distance, a pixel is half as wide.
        changed(zoom=0.5, pan=(5, 0)),
        changed(azimuth=-0.08),
        # The wheel, toward the person and away.
        changed(zoom=np.exp(0.1)),
        changed(zoom=np.exp(-0.1)),
        # Neither lost in the distance nor inside, and never over the poles.
        changed(zoom=20.0),
        changed(zoom=0.05),
        changed(polar=0.01 - VIEWPOINT.polar),
        changed(polar=np.pi - 0.01 - VIEWPOINT.polar),
        changed(azimuth=-0.1),
        changed(polar=0.1),
        changed(zoom=0.9),
        changed(zoom=1 / 0.9),
        changed(turning=1.0),
        changed(),
        changed(pan=(-20, 0)),
        changed(turning=1.0),
        changed(),
        changed(),
    ]
    np.testing.assert_allclose(states, wanted, atol=2e-4)
    assert classes == "dark bare"
