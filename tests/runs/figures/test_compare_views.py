"""Figures 4 and 14: frames of the ground truth, the picture and the video, and a resumed figure."""

import csv
import io

import numpy as np
import pytest

from ge3d_jax.runs.evaluate import true_pictures
from ge3d_jax.runs.figures import compare_views
from ge3d_jax.runs.figures.base import Work, write_made
from ge3d_jax.runs.figures.compare_views import ARMS, SIZES, Settings
from ge3d_jax.runs.figures.swept import Plan
from ge3d_jax.training.presets import configured
from tests.runs.figures.observed import PROMPT, Stopped, files_of, stopping
from tests.tiny_model import IMAGE_SIZE

FEW = {"iterations": 2, "views": 2, "image_size": IMAGE_SIZE, "start.count": 50}
SETTINGS = Settings(Plan("toybox_ball", (PROMPT,), (0,), FEW), frames=4, shown=2)


def test_the_truth_goes_once_around():
    frames = compare_views.true_frames("a blue duck", 4)
    # Every second one of eight views.
    np.testing.assert_allclose(frames / 255.0, true_pictures("a blue duck")[::2], atol=0.003)


def shaded(*shades):
    return np.stack([np.full((40, 40, 3), shade, np.uint8) for shade in shades])


def test_the_picture_has_evenly_chosen_frames_and_the_video_all():
    collected = {
        f"prompt {index}": {"truth": shaded(0, 1, 2, 3) + index, "ge3d": shaded(100, 101, 102, 103) + index}
        for index in range(4)
    }
    picture = compare_views.picture(collected, 2)
    # The first three prompts, with two rows each.
    height, middles = 40 + 18 + 6, (20, 66)
    assert picture.shape[:2] == (6 * height + 6, 2 * 46 + 6)
    found = [[int(picture[26 + row * height, left, 0]) for left in middles] for row in range(6)]
    assert found == [[0, 2], [100, 102], [1, 3], [101, 103], [2, 4], [102, 104]]
    video = compare_views.video(collected)
    assert video.shape == (4, 4 * height + 6, 2 * 46 + 6, 3)
    for frame in range(4):
        found = [[int(video[frame, 26 + row * height, left, 0]) for left in middles] for row in range(4)]
        assert found == [[frame + index, 100 + frame + index] for index in range(4)]


def test_a_stopped_figure_goes_on_to_the_same_files(tiny_place, tiny_gallery, tmp_path):
    def make(folder, report):
        made = compare_views.compare_frames(
            SETTINGS, Work("small", folder, str(tiny_place), report), tiny_gallery
        )
        write_made(made, name="compare_views", command="", out=folder / "out")
        return files_of(folder / "out")

    with pytest.raises(Stopped):
        make(tmp_path / "stopped", stopping(2))
    (first,) = (tmp_path / "stopped" / "objects").glob("*/a-red-mushroom-0/object.ply")
    written = first.stat().st_mtime_ns
    again = make(tmp_path / "stopped", lambda line: None)
    assert first.stat().st_mtime_ns == written
    whole = make(tmp_path / "whole", lambda line: None)
    assert again == whole and set(whole) == {
        f"compare_views.{kind}" for kind in ("csv", "json", "md", "mp4", "png")
    }
    rows = list(csv.DictReader(io.StringIO(whole["compare_views.csv"].decode())))
    assert [row["loss"] for row in rows if row["seed"]] == ["ge3d", "ism"]
    text = whole["compare_views.md"].decode()
    assert "| ge3d |" in text and "| ism |" in text and "PSNR" in text

    seen = compare_views.collect_frames(SETTINGS, Work("small", tmp_path / "whole", str(tiny_place), print))
    (own,) = seen.values()
    assert list(own) == ["truth", "ge3d", "ism"] and own["ism"].shape == (4, 128, 128, 3)
    assert np.abs(own["ge3d"].astype(int) - own["ism"]).max() > 0


@pytest.mark.parametrize("size", SIZES)
def test_settings_can_be_used(size):
    settings = SIZES[size]
    assert settings.frames % settings.shown == 0
    for arm in ARMS:
        config = configured(settings.plan.preset, guidance=arm.guidance, overrides=settings.plan.overrides)
        assert config.iterations >= 100
