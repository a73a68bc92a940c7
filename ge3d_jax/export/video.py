"""Turntables as files: .mp4 that every player opens, and .gif that every page shows."""

import os
from collections.abc import Sequence

import imageio_ffmpeg
import numpy as np
from PIL import Image

from ge3d_jax.export.sheet import enlarge
from ge3d_jax.files import atomic_path

# Frames smaller than this are hard to look at, so they are enlarged by a whole factor.
_SMALLEST_SIDE = 256


def _prepare(frames: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    if len(frames) == 0:
        raise ValueError("A video needs at least one frame.")
    return [enlarge(np.asarray(frame), minimum=_SMALLEST_SIDE) for frame in frames]


def save_mp4(path: str | os.PathLike[str], frames: np.ndarray, fps: int = 24) -> None:
    """Write uint8 frames (T, H, W, 3) as H.264, yuv420p; small frames enlarged, odd sides less one pixel."""
    prepared = _prepare(frames)
    height, width = (side - side % 2 for side in prepared[0].shape[:2])
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            quality=8,
            macro_block_size=2,
            ffmpeg_log_level="error",
            # Bit-exact muxing leaves the encoder's version and the date out of the file.
            output_params=["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
            + ["-movflags", "+faststart"],
        )
        writer.send(None)
        for frame in prepared:
            writer.send(np.ascontiguousarray(frame[:height, :width]))
        writer.close()


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
