"""A run with the reconstruction stage: output files, stopping and resuming."""

import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import ge3d_jax
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.formats.ply import load_ply
from ge3d_jax.runs import reconstruct as stage_module
from ge3d_jax.runs.made_objects import make_object, object_folder
from ge3d_jax.runs.observers import Bar
from ge3d_jax.runs.request import check_times
from ge3d_jax.training.presets import PRESETS
from tests.tiny_model import IMAGE_SIZE, write_tiny_model

PROMPT = "a red mushroom"
SMALL = {
    "iterations": 4,
    "views": 2,
    "image_size": IMAGE_SIZE,
    "start.kind": "ball",
    "start.count": 50,
    "nodes.count": 2,
    "reconstruction.rings": [[80, 2], [60, 2]],
    "reconstruction.held_out": 2,
    "reconstruction.passes": 2,
    "reconstruction.views_per_step": 2,
}


class InterruptedBar(Bar):
    """Simulates Ctrl-C after the second step."""

    def on_iteration(self, done, numbers, state):
        if done == 2:
            signal.raise_signal(signal.SIGINT)
        return super().on_iteration(done, numbers, state)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    return {
        "model": folder,
        "overrides": SMALL,
        "reconstruct_from": 0.5,
        "preview_every": 0,
        "progress": False,
        "seed": 3,
    }


@pytest.fixture(scope="module")
def result(run, tmp_path_factory):
    return ge3d_jax.generate(PROMPT, out=tmp_path_factory.mktemp("run"), **run)


def test_the_stage_writes_what_it_measured(result):
    assert not result.interrupted and result.iterations == len(result.metrics) == 2
    said = json.loads((result.folder / "reconstruction.json").read_text())
    assert said["steps"] == 4 and not said["interrupted"]
    assert len(said["held_out_views"]) == 2
    held_out = [view["after"] for view in said["held_out_views"]]
    np.testing.assert_allclose(said["psnr"]["held_out"]["after"], np.mean(held_out))
    # The fit moves towards the edited views.
    assert said["psnr"]["fitted"]["after"] > said["psnr"]["fitted"]["before"]
    with Image.open(result.folder / "reconstruction.png") as sheet:
        assert sheet.width > 2 * 190 and sheet.height > 3 * 190
    config = json.loads((result.folder / "config.json").read_text())
    assert config["settings"]["reconstruction"]["start"] == 0.5


def test_an_interrupted_stage_keeps_the_object_and_begins_anew(run, result, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(stage_module, "Bar", InterruptedBar)
        stopped = ge3d_jax.generate(PROMPT, out=tmp_path, **run)
    assert stopped.interrupted and stopped.iterations == 2
    said = json.loads((tmp_path / "reconstruction.json").read_text())
    assert said["interrupted"] and said["steps"] == 2
    half = np.asarray(load_ply(tmp_path / "object.ply").positions)
    resumed = ge3d_jax.generate(PROMPT, out=tmp_path, **run, resume=True)
    assert not resumed.interrupted
    assert np.abs(half - np.asarray(load_ply(tmp_path / "object.ply").positions)).max() > 0
    for name in ("object.ply", "reconstruction.json", "reconstruction.png"):
        assert (tmp_path / name).read_bytes() == (result.folder / name).read_bytes(), name
    assert [line["iteration"] for line in resumed.metrics] == [1, 2]


def test_a_sweep_that_is_interrupted_in_the_stage_ends_and_makes_the_object_later(run, tmp_path, monkeypatch):
    given = {name: value for name, value in run.items() if name != "seed"} | {"seeds": (3, 4)}
    with monkeypatch.context() as patched:
        patched.setattr(stage_module, "Bar", InterruptedBar)
        stopped = ge3d_jax.sweep(PROMPT, out=tmp_path, **given)
    assert stopped.interrupted and [one.status for one in stopped.outcomes] == ["pending", "pending"]
    # Both were distilled together; the second one's stage does not begin.
    assert not (tmp_path / "a-red-mushroom-4" / "reconstruction.json").exists()
    assert ge3d_jax.sweep(PROMPT, out=tmp_path, **given, resume=True).is_complete
    said = json.loads((tmp_path / "a-red-mushroom-3" / "reconstruction.json").read_text())
    assert not said["interrupted"] and said["steps"] == 4


def test_a_full_disk_in_the_stage_costs_its_report_only(run, result, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(stage_module, "write_json", full)
        ended = ge3d_jax.generate(PROMPT, out=tmp_path, **run)
    assert "reconstruction.json could not be written (No space left on device)." in ended.unwritten
    assert (tmp_path / "object.ply").read_bytes() == (result.folder / "object.ply").read_bytes()


def test_an_object_with_the_stage_is_made_once(run, result, tmp_path):
    overrides = SMALL | {"reconstruction.start": 0.5}
    asked = {"seed": 3, "folder": tmp_path, "model": run["model"], "overrides": overrides}
    folder = object_folder(PROMPT, seed=3, folder=tmp_path, overrides=overrides)
    shutil.copytree(result.folder, folder)
    written = (folder / "object.ply").stat().st_mtime_ns
    _, seconds = make_object(PROMPT, **asked)
    assert seconds == result.metrics[-1]["seconds"]
    assert (folder / "object.ply").stat().st_mtime_ns == written
    # An interrupted stage is not the end.
    told = json.loads((folder / "reconstruction.json").read_text())
    (folder / "reconstruction.json").write_text(json.dumps(told | {"interrupted": True}))
    make_object(PROMPT, **asked)
    assert (folder / "object.ply").stat().st_mtime_ns > written
    assert not told["diverged"]


def test_a_run_without_the_stage_leaves_none_of_an_earlier_one(run, result, tmp_path):
    shutil.copytree(result.folder, tmp_path / "run")
    ge3d_jax.generate(PROMPT, out=tmp_path / "run", **run | {"reconstruct_from": None})
    assert not list((tmp_path / "run").glob("reconstruction.*"))


def test_mistakes(run, tmp_path):
    with pytest.raises(UserError, match="reconstruction.start is 1.5"):
        ge3d_jax.generate(PROMPT, out=tmp_path / "run", **run | {"reconstruct_from": 1.5})
    changed = {"reconstruction.start": 0.5, "reconstruction.latest_node": 1000}
    with pytest.raises(UserError, match="latest_node is 1000"):
        check_times(with_overrides(PRESETS["toybox"], changed), 1000)
