"""Turntables as files: .mp4 that every player opens, and .gif that every page shows."""

import os
import subprocess
from collections.abc import Sequence

import imageio_ffmpeg
import numpy as np
from PIL import Image

from ge3d_jax.errors import UserError
from ge3d_jax.export.sheet import enlarge
from ge3d_jax.files import atomic_path

# Frames smaller than this are hard to look at, so they are enlarged by a whole factor.
_SMALLEST_SIDE = 256
# H.264 first; an ffmpeg built without it has MPEG-4.
_CODECS = (("libx264", "-crf", "16"), ("mpeg4", "-q:v", "3"))


def _prepare(frames: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    if len(frames) == 0:
        raise ValueError("A video needs at least one frame.")
    return [enlarge(np.asarray(frame), minimum=_SMALLEST_SIDE) for frame in frames]


def save_mp4(path: str | os.PathLike[str], frames: np.ndarray, fps: int = 24) -> None:
    """Write uint8 frames (T, H, W, 3) as H.264, yuv420p; small frames enlarged, odd sides less one pixel.

    Raises: UserError where there is no working ffmpeg; the one that comes with imageio-ffmpeg works.
    """
    prepared = _prepare(frames)
    height, width = (side - side % 2 for side in prepared[0].shape[:2])
    pixels = np.stack([frame[:height, :width] for frame in prepared]).tobytes()
    complaint = ""
    with atomic_path(path) as temporary:
        for codec in _CODECS:
            # Bit-exact muxing leaves the encoder's version and the date out of the file. One thread: the
            # same bytes on any number of cores.
            output = ["-an", "-c:v", *codec, "-pix_fmt", "yuv420p", "-threads", "1", "-fflags", "+bitexact"]
            command = [_ffmpeg(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
            command += ["-s", f"{width}x{height}", "-r", str(fps), "-i", "-", *output]
            command += ["-flags:v", "+bitexact", "-movflags", "+faststart", str(temporary)]
            # In a session of its own, so that Ctrl-C does not cut the file short.
            finished = subprocess.run(command, input=pixels, capture_output=True, start_new_session=True)
            if finished.returncode == 0:
                return
            complaint = finished.stderr.decode(errors="replace").strip()
        raise UserError(
            f"{path} cannot be written, ffmpeg says: {complaint}; set IMAGEIO_FFMPEG_EXE to another."
        )


def _ffmpeg() -> str:
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(
            "There is no ffmpeg for the .mp4; install one or set IMAGEIO_FFMPEG_EXE to its path."
        ) from error


def save_gif(path: str | os.PathLike[str], frames: np.ndarray, fps: int = 24) -> None:
    """Write uint8 frames (T, H, W, 3) as an endless .gif, in one palette so that nothing flickers."""
    prepared = _prepare(frames)
    # The palette is chosen on all frames at once: side by side they are one picture.
    palette = Image.fromarray(np.concatenate(prepared[:: max(1, len(prepared) // 8)], axis=1)).quantize(255)
    pages = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in prepared]
    with atomic_path(path) as temporary:
        # Times in a .gif are hundredths of a second.
        duration = max(20, round(100 / fps) * 10)
        pages[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pages[1:],
            duration=duration,
            loop=0,
            optimize=False,
        )
