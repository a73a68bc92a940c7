"""Section 7.2: the stage in mid-run equals that at the end of a shorter run; resuming; the rows."""

import dataclasses
import json

import numpy as np
import pytest

import ge3d_jax
from ge3d_jax.metrics.likeness import object_views
from ge3d_jax.runs.evaluate import likeness_cameras
from ge3d_jax.runs.figures import reconstruct
from ge3d_jax.runs.figures.base import Record, Work, write_made
from ge3d_jax.runs.figures.reconstruct import SIZES, Settings
from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.viewer.sheet import to_uint8
from tests.runs.figures.observed import PROMPT, SMALL, Stopped, files_of, stopping

SETTINGS = Settings("toybox", (PROMPT,), seed=3, looks=3, overrides=SMALL)


def make(folder, place, tiny_gallery, report=lambda line: None):
    made = reconstruct.make_of(SETTINGS, Work("small", folder, str(place), report), tiny_gallery)
    write_made(made, name="reconstruct", command="", out=folder / "out")
    return files_of(folder / "out")


@pytest.fixture(scope="module")
def whole(tiny_place, tiny_gallery, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, make(folder, tiny_place, tiny_gallery)


def test_a_stage_on_the_way_is_that_at_the_end_of_a_shorter_run(tiny_place, whole, tmp_path):
    folder, _ = whole
    how = {"model": tiny_place, "overrides": SMALL, "preview_every": 0, "progress": False}
    short = ge3d_jax.generate(PROMPT, seed=3, out=tmp_path, reconstruct_from=0.5, **how)
    assert short.iterations == 2
    own = folder / "a-red-mushroom" / "stage-00002" / "reconstruction.json"
    assert own.read_bytes() == (tmp_path / "reconstruction.json").read_bytes()
    with np.load(folder / "a-red-mushroom" / "iteration-00002.npz") as kept:
        np.testing.assert_array_equal(kept["after"], reconstruct.shown_from_one_side(short.gaussians))
        assert np.abs(kept["before"].astype(int) - kept["after"]).max() > 0


def test_the_run_goes_on_as_if_nothing_had_been(tiny_place, whole, tmp_path):
    folder, _ = whole
    plain = ge3d_jax.generate(
        PROMPT, seed=3, model=tiny_place, out=tmp_path, overrides=SMALL, preview_every=0, progress=False
    )
    ours = folder / "a-red-mushroom" / "run" / "object.ply"
    assert ours.read_bytes() == (plain.folder / "object.ply").read_bytes()


def test_the_rows_have_both_sides_of_each_stage(whole):
    folder, files = whole
    rows = json.loads(files["reconstruct.json"])["rows"]
    assert [(row["iterations"], row["stage"]) for row in rows] == [
        (done, stage) for done in (1, 2, 4) for stage in ("before", "after")
    ]
    said = json.loads((folder / "a-red-mushroom" / "stage-00004" / "reconstruction.json").read_text())["psnr"]
    for row in rows[4:]:
        assert row["fitted"] == pytest.approx(said["fitted"][row["stage"]], rel=1e-5)
        assert row["held_out"] == pytest.approx(said["held_out"][row["stage"]], rel=1e-5)
    assert all(0 < row["psnr"] < 40 and row["prompt"] == PROMPT for row in rows)
    text = files["reconstruct.md"].decode()
    assert "| 1 iteration, before |" in text and "| 4 iterations, after |" in text
    means = [
        np.mean([row["held_out"] for row in rows if row["stage"] == stage]) for stage in reconstruct.STAGES
    ]
    assert f"to {means[0]:.1f} dB before the stage and {means[1]:.1f} dB after it" in text
    assert set(files) == {
        "reconstruct.csv", "reconstruct.json", "reconstruct.md", "reconstruct.png", "reconstruct_curves.png"
    }  # fmt: skip


def test_a_stopped_figure_goes_on_to_the_same_files(tiny_place, tiny_gallery, whole, tmp_path):
    with pytest.raises(Stopped):
        make(tmp_path, tiny_place, tiny_gallery, stopping(3))
    kept = sorted((tmp_path / "a-red-mushroom").glob("iteration-*.json"))
    assert len(kept) == 2
    written = [file.stat().st_mtime_ns for file in kept]
    assert make(tmp_path, tiny_place, tiny_gallery) == whole[1]
    assert [file.stat().st_mtime_ns for file in kept] == written


def test_the_picture_has_rows_before_and_after_and_the_truth_last():
    def shaded(shade):
        return np.full((40, 40, 3), shade, np.uint8)

    records = {
        prompt: {
            done: Record({}, {"before": shaded(base + done), "after": shaded(base + 10 + done)})
            for done in (1, 2)
        }
        for prompt, base in (("one", 0), ("other", 100))
    }
    truths = {"one": shaded(50), "other": shaded(150)}
    picture = reconstruct.picture(records, truths)
    height = 40 + 18 + 6
    found = picture[np.ix_(26 + height * np.arange(4), 26 + 46 * np.arange(3))][..., 0]
    assert found.tolist() == [[1, 2, 50], [11, 12, 50], [101, 102, 150], [111, 112, 150]]
    assert reconstruct.picture(records, {}).shape[1] == 2 * 46 + 6


def test_objects_are_shown_from_the_side_that_the_truth_is_shown_from():
    places = np.asarray([[0.4, 0.0, 0.0], [0.0, 0.3, 0.2]])
    blobs = make_gaussians(places, np.eye(3)[:2], np.full((2, 3), 0.15), np.full(2, 0.9), capacity=2)
    second = object_views(blobs, likeness_cameras()).pictures[1]
    shown = reconstruct.shown_from_one_side(blobs)
    assert np.abs(shown.astype(int) - to_uint8(second)).max() <= 2


def test_without_a_truth_it_is_told_how_the_edits_are_met():
    record = Record(
        {
            "before": {"fitted": 10.0, "held_out": 12.0},
            "after": {"fitted": 20.0, "held_out": 17.0},
        }
    )
    rows = reconstruct.rows_of({"a radio": {5: record, 9: record}})
    assert rows[1] == {
        "run": "5 iterations, after", "iterations": 5, "stage": "after", "prompt": "a radio", "fitted": 20.0,
        "held_out": 17.0,
    }  # fmt: skip
    assert "12.0 dB before the stage and 17.0 dB after" in reconstruct.agreement(rows)


@pytest.mark.parametrize("size", SIZES)
def test_settings_can_be_used(size):
    settings = SIZES[size]
    assert settings.is_known == (size != "paper")
    for prompt in settings.prompts:
        run = settings.run(prompt)
        assert run.config.reconstruction.start is None and len(run.iterations) == settings.looks
        if settings.is_known:
            run.check(None)
    with pytest.raises(Exception, match="dragon"):
        dataclasses.replace(settings, preset="toybox").run("a red dragon").check(None)
