"""Images and turntables: sizes, values, endless loops, and reproducible bytes."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.video import save_gif, save_mp4
from ge3d_jax.viewer.sheet import enlarge, image_grid, save_png, to_uint8
from ge3d_jax.viewer.turntable import turntable_azimuths, view_sheet


def moving_square(count=6, size=33):
    frames = np.full((count, size, size, 3), 255, np.uint8)
    for index in range(count):
        frames[index, 8:16, index * 3 : index * 3 + 8] = (200, 30, 40)
    return frames


def test_to_uint8_rounds_and_clips():
    values = np.array([[[-1.0, 0.0, 0.499 / 255], [0.5, 1.0, 2.0], [np.nan, 254.5 / 255, 0.502 / 255]]])
    assert to_uint8(values).tolist() == [[[0, 0, 0], [128, 255, 255], [0, 254, 1]]]


def test_enlarge_by_a_whole_factor():
    image = np.zeros((64, 80, 3), np.uint8)
    assert enlarge(image, minimum=256).shape == (256, 320, 3)
    assert enlarge(image, minimum=65).shape == (128, 160, 3)
    assert enlarge(image, minimum=64) is image


def test_png_round_trip_and_same_bytes(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    save_png(tmp_path / "a.png", image)
    save_png(tmp_path / "b.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_grid_places_images_and_labels():
    images = [np.full((64, 64, 3), value, np.uint8) for value in (10, 120, 200)]
    sheet = image_grid(images, ["0°", "90°", "180°"], columns=2)
    assert sheet.dtype == np.uint8
    for value in (10, 120, 200):
        assert (sheet == value).all(axis=-1).sum() >= 64 * 64
    # They are read like a text.
    rows, columns = zip(
        *((np.argwhere((sheet == value).all(-1)).min(axis=0)) for value in (10, 120, 200)), strict=True
    )
    assert rows[0] == rows[1] < rows[2] and columns[0] == columns[2] < columns[1]
    # Two rows of two cells, with the last cell empty.
    assert sheet.shape[0] > 2 * 64 and 2 * 64 < sheet.shape[1] < 3 * 64
    assert (sheet[-60:, -60:] == 255).all()
    labeled = image_grid(images, ["", "", ""], columns=2)
    assert (labeled != sheet).any()


def test_grid_needs_a_label_per_image():
    with pytest.raises(ValueError, match="labels"):
        image_grid([np.zeros((8, 8, 3), np.uint8)], [], columns=1)


def test_a_turntable_goes_around_once_counterclockwise() -> None:
    np.testing.assert_allclose(turntable_azimuths(4), [0, 0.5 * np.pi, np.pi, 1.5 * np.pi])


def test_views_are_labeled_in_degrees_after_a_note() -> None:
    images = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (10, 120)])
    azimuths = np.array([0.0, 0.5 * np.pi])
    plain, noted = view_sheet(images, azimuths), view_sheet(images, azimuths, note="start,")
    np.testing.assert_array_equal(plain, image_grid(list(images), ["0°", "90°"], columns=4))
    np.testing.assert_array_equal(noted, image_grid(list(images), ["start, 0°", "90°"], columns=4))


def test_gif_loops_forever(tmp_path):
    frames = moving_square()
    save_gif(tmp_path / "a.gif", frames, fps=10)
    save_gif(tmp_path / "b.gif", frames, fps=10)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (6, 0, 100)
        assert gif.size == (33, 33)
        pixel = gif.convert("RGB").getpixel((4, 12))
        assert np.abs(np.subtract(pixel, (200, 30, 40))).max() < 12


@pytest.mark.parametrize(("fps", "milliseconds"), [(24, 40), (30, 30), (60, 20), (200, 20)])
def test_gif_has_whole_hundredths_of_a_second_that_browsers_keep(
    tmp_path: Path, fps: int, milliseconds: int
) -> None:
    # Browsers show frames shorter than two hundredths for ten.
    save_gif(tmp_path / "a.gif", moving_square(count=2), fps=fps)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["duration"] == milliseconds


def test_gif_has_the_colors_of_early_and_late_frames(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frames = np.stack([random.integers(low, low + 60, (16, 16, 3)) for low in np.repeat([0, 190], 20)])
    save_gif(tmp_path / "a.gif", frames.astype(np.uint8))
    with Image.open(tmp_path / "a.gif") as gif:
        for index in (0, 39):
            gif.seek(index)
            shown = np.asarray(gif.convert("RGB"), int)
            assert np.abs(shown - frames[index]).mean() < 10


def test_what_stands_still_in_a_gif_does_not_flicker(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 16, 32, 3), np.uint8)
    frames[:, :, :16] = frames[0, :, :16]
    save_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as gif:
        shown = []
        for index in range(6):
            gif.seek(index)
            shown.append(np.asarray(gif.convert("RGB")))
    np.testing.assert_array_equal(np.stack(shown)[:, :, :16], np.stack([shown[0][:, :16]] * 6))
    assert (shown[0][:, 16:] != shown[1][:, 16:]).any()


def test_mp4_opens_with_even_sides(tmp_path):
    frames = moving_square(size=257)
    save_mp4(tmp_path / "a.mp4", frames, fps=12)
    save_mp4(tmp_path / "b.mp4", frames, fps=12)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    # Browsers play it before it has arrived completely.
    assert data.index(b"moov") < data.index(b"mdat")
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    meta = next(reader)
    assert meta["source_size"] == (256, 256)
    assert meta["pix_fmt"].startswith("yuv420p")
    assert (meta["codec"], meta["fps"], meta["duration"]) == ("h264", 12, 0.5)
    shown = [np.frombuffer(picture, np.uint8).reshape(256, 256, 3) for picture in reader]
    assert len(shown) == 6
    for index in (0, 5):
        inside = shown[index][11:13, 3 * index + 3 : 3 * index + 5]
        np.testing.assert_allclose(inside.mean(axis=(0, 1)), (200, 30, 40), atol=12)
        assert shown[index][100:].min() > 250


def test_frames_one_by_one_are_the_same_video(tmp_path):
    frames = moving_square()
    save_mp4(tmp_path / "a.mp4", frames)
    save_mp4(tmp_path / "b.mp4", (frame for frame in frames))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("save", [save_gif, save_mp4])
def test_videos_need_frames(tmp_path, save):
    with pytest.raises(ValueError, match="at least one"):
        save(tmp_path / "a", np.zeros((0, 8, 8, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_a_video_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def stopped():
        yield from moving_square()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_mp4(tmp_path / "a.mp4", stopped())
    for program, says in (("/bin/false", "cannot be written, ffmpeg says"), ("/no/ffmpeg", "cannot be run")):
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
        with pytest.raises(UserError, match=says):
            # More than the capacity of a pipe.
            save_mp4(tmp_path / "a.mp4", moving_square())
    assert not list(tmp_path.iterdir())
