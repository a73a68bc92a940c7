"""Show a splat file: a turntable, a camera path, a sheet of views, one image, or an interactive page.

    ge3d show --splats=outputs/a-red-mushroom-0/object.ply
    ge3d show --splats=garden.ply --up=-y --out=garden.mp4 --size=640x360
    ge3d show --splats=garden.ply --cameras=transforms.json --out=flight.mp4
    ge3d show --splats=chair.splat --azimuth=30 --elevation=10 --out=chair.png

--splats is any file that ge3d convert reads, from any tool. By default, the folder outputs/<folder>-<name>/
then holds turntable.mp4, turntable.gif, views.png, and viewer.html, a page that works offline; --out=FILE
writes only that file. The cameras are placed so that nearly all splats are visible. Captures usually have y
pointing down: --up=-y. The same goes for .spz and .glb files of other tools, which are turned to the axes of
.ply.
"""

from absl import flags

from ge3d_jax.cli import rasterizer_flag, script

flags.adopt_module_key_flags(rasterizer_flag)

_SPLATS = flags.DEFINE_string("splats", None, "A splat file: .ply, .splat, .spz, .sog, …", required=True)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "A .mp4, .gif, .png or .html file, or a folder for one of each; by default outputs/<folder>-<name>.",
)
_CAMERAS = flags.DEFINE_string(
    "cameras",
    None,
    "Instead of a turntable: a camera path, JSON like NeRF's transforms.json, nerfstudio's camera_path.json "
    "or cameras.json of 3D Gaussian Splatting.",
)
_FRAMES = flags.DEFINE_integer("frames", 64, "Frames of the turntable.")
_VIEWS = flags.DEFINE_integer("views", 8, "Views on the sheet (.png).")
_FPS = flags.DEFINE_integer("fps", 20, "Frames per second.")
_SIZE = flags.DEFINE_string("size", "512", "Pixels, e.g. 512 or 640x360.")
_AZIMUTH = flags.DEFINE_float(
    "azimuth", None, "Where the turntable starts, degrees, 0 = +x; with a .png, one image from there."
)
_ELEVATION = flags.DEFINE_float("elevation", 20.0, "Degrees above the horizon.")
_RADIUS = flags.DEFINE_float(
    "radius", None, "Distance of the cameras, in the file's units; by default automatic."
)
_FOV = flags.DEFINE_float("fov", 30.0, "Vertical field of view, degrees.")
_UP = flags.DEFINE_string("up", "z", "Up direction of the file: z, y or -y.")
_ANTIALIASED = flags.DEFINE_bool(
    "antialiased",
    None,
    "Weaken splats thinner than a pixel, for splats trained with antialiasing (Mip-Splatting); by default as "
    "the file says.",
)
_BACKGROUND = flags.DEFINE_string("background", "white", "A color, e.g. white or #8090a0.")
# Files without a page, which has its own cameras even if the others follow a path.
_FILMS = (".mp4", ".gif", ".png")


def _refuse_ignored() -> None:
    """Refuse flags that a camera path makes meaningless. Raises UserError."""
    if _CAMERAS.value is None:
        return
    ignored = [_FRAMES, _AZIMUTH]
    if (_OUT.value or "").lower().endswith(_FILMS):
        ignored += [_ELEVATION, _RADIUS, _FOV]
    script.refuse([flag.name for flag in ignored if flag.present], where="--cameras")


def main() -> None:
    """Render, and print where the files are."""
    _refuse_ignored()
    from ge3d_jax.runs.show import parse_color, parse_size, render_splats

    written = render_splats(
        _SPLATS.value,
        out=_OUT.value,
        camera_path=_CAMERAS.value,
        frames=_FRAMES.value,
        views=_VIEWS.value,
        fps=_FPS.value,
        size=parse_size(_SIZE.value),
        azimuth_degrees=_AZIMUTH.value,
        elevation_degrees=_ELEVATION.value,
        radius=_RADIUS.value,
        fov_degrees=_FOV.value,
        up=_UP.value,
        background=parse_color(_BACKGROUND.value),
        antialiased=_ANTIALIASED.value,
        rasterizer=rasterizer_flag.chosen(),
    )
    for path in written:
        print(f"  {path}")
