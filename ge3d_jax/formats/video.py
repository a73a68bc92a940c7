"""Turntable videos: .mp4, which every player opens, and .gif, which every web page shows."""

import contextlib
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence

import imageio_ffmpeg
import numpy as np
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path

# H.264 first; an ffmpeg built without it has at least MPEG-4.
_CODECS = (("libx264", "-crf", "16"), ("mpeg4", "-q:v", "3"))
# The palette of a .gif is chosen from about this many of its frames.
_PALETTE_FRAMES = 8
_COLORS = 255


def save_mp4(path: str | os.PathLike[str], frames: Iterable[np.ndarray], fps: int = 24) -> None:
    """Write an H.264 video, yuv420p.

    Args:
        path: file to write.
        frames: uint8 (H, W, 3) each, at least one; each is streamed to ffmpeg and not kept. Odd sides lose
            one pixel.
        fps: frames per second.

    Raises:
        UserError: there is no working ffmpeg; the one bundled with imageio-ffmpeg works.
    """
    each = map(np.asarray, frames)
    first = next(each, None)
    if first is None:
        raise ValueError("A video needs at least one frame.")
    height, width = (side - side % 2 for side in first.shape[:2])
    program = _ffmpeg()
    # Bit-exact muxing leaves the encoder's version and the date out of the file. A single thread gives the
    # same bytes on any number of cores.
    output = ["-an", "-c:v", *_codec(program), "-pix_fmt", "yuv420p", "-threads", "1", "-fflags", "+bitexact"]
    command = [program, "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", str(fps), "-i", "-", *output]
    with atomic_path(path) as temporary, tempfile.TemporaryFile() as complaints:
        command += ["-flags:v", "+bitexact", "-movflags", "+faststart", str(temporary)]
        # In its own session, so that Ctrl-C does not cut the file short.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=complaints, stderr=complaints, start_new_session=True
        )
        assert process.stdin is not None  # a pipe, as requested
        try:
            # If the pipe breaks, ffmpeg has given up; its reason is reported below.
            with contextlib.suppress(BrokenPipeError):
                for frame in itertools.chain([first], each):
                    process.stdin.write(frame[:height, :width].tobytes())
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            status = process.wait()
        if status != 0:
            complaints.seek(0)
            complaint = complaints.read().decode(errors="replace").strip()
            raise UserError(
                f"{path} cannot be written, ffmpeg says: {complaint}; set IMAGEIO_FFMPEG_EXE to another one."
            )


def _ffmpeg() -> str:
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(
            "No ffmpeg was found to write the .mp4; install one or set IMAGEIO_FFMPEG_EXE to its path."
        ) from error


def _codec(program: str) -> tuple[str, ...]:
    """Return the first codec that this ffmpeg has."""
    try:
        listed = subprocess.run([program, "-v", "error", "-encoders"], capture_output=True).stdout.split()
    except OSError as error:
        raise UserError(
            f"The ffmpeg {program} cannot be run ({error.strerror}); set IMAGEIO_FFMPEG_EXE to another one."
        ) from error
    return next((codec for codec in _CODECS if codec[0].encode() in listed), _CODECS[-1])


def palette_indices(count: int) -> np.ndarray:
    """Choose which of `count` frames determine the palette of a .gif, and return their indices."""
    return np.arange(0, count, max(1, count // _PALETTE_FRAMES))


class GifPages:
    """Frames of a .gif, stored at one byte per pixel, with a single palette so that nothing flickers."""

    def __init__(self, palette_frames: Sequence[np.ndarray]) -> None:
        """Choose the palette from uint8 frames (H, W, 3): those at `palette_indices`."""
        # Concatenated into a single image, so that the palette suits all of them.
        row = np.concatenate(palette_frames, axis=1)
        self._palette = Image.fromarray(row).quantize(_COLORS)
        self._pages: list[Image.Image] = []

    def add(self, frame: np.ndarray) -> None:
        """Add a uint8 frame (H, W, 3)."""
        image = Image.fromarray(np.asarray(frame))
        self._pages.append(image.quantize(palette=self._palette, dither=Image.Dither.NONE))

    def save(self, path: str | os.PathLike[str], fps: int = 24) -> None:
        """Write a .gif that loops forever."""
        with atomic_path(path) as temporary:
            # Durations in a .gif are in hundredths of a second.
            duration = max(20, round(100 / fps) * 10)
            self._pages[0].save(
                temporary,
                format="GIF",
                save_all=True,
                append_images=self._pages[1:],
                duration=duration,
                loop=0,
                optimize=False,
            )


def save_gif(path: str | os.PathLike[str], frames: np.ndarray | Sequence[np.ndarray], fps: int = 24) -> None:
    """Write uint8 frames (T, H, W, 3) as a .gif that loops forever."""
    if len(frames) == 0:
        raise ValueError("A video needs at least one frame.")
    pages = GifPages([frames[index] for index in palette_indices(len(frames))])
    for frame in frames:
        pages.add(frame)
    pages.save(path, fps)
