"""Sweeps on a tiny random model: output files, rejected inputs, and resuming."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ge3d_jax
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import process_mark
from ge3d_jax.formats.ply import load_ply
from ge3d_jax.runs.asked import asked_by_preset
from ge3d_jax.runs.object_request import ObjectRequest
from ge3d_jax.runs.sweep_bar import SweepBar
from ge3d_jax.runs.sweep_folder import SweepFolder
from ge3d_jax.runs.sweep_plan import parse_seeds, read_lines, share_of
from tests.tiny_model import IMAGE_SIZE

ROOT = Path(__file__).parent.parent.parent
PROMPT = "a red mushroom"
SMALL = {
    "iterations": 3,
    "views": 2,
    "image_size": IMAGE_SIZE,
    "start.kind": "ball",
    "start.count": 50,
    "guidance.kind": "sds",
    "buffer_capacity": 4096,
}
NAMES = ("a-red-mushroom-3", "a-red-mushroom-4")


@pytest.fixture(scope="module")
def sweep(model):
    def sweep(out, *, prompts=PROMPT, seeds=(3, 4), **options):
        given = {"overrides": SMALL, "preview_every": 0, "progress": False, "save_seconds": 0}
        return ge3d_jax.sweep(prompts, seeds=seeds, model=model, out=out, **(given | options))

    return sweep


@pytest.fixture(scope="module")
def made(sweep, tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("sweep"))


def same_but_for_rounding(one, other):
    for field in ("positions", "sh"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), atol=1e-3)


def test_each_object_is_written_as_generate_writes_it(made):
    for name in NAMES:
        assert {path.name for path in (made.folder / name).iterdir()} == {
            "object.ply",
            "turntable.mp4",
            "turntable.gif",
            "views.png",
            "viewer.html",
            "config.json",
            "metrics.jsonl",
            "state",
        }
    assert made.is_complete and not made.interrupted


def test_a_sweep_of_one_is_the_bytes_of_that_run_and_its_config_repeats_it(sweep, model, tmp_path):
    result = sweep(tmp_path / "sweep", seeds=[4])
    folder = result.folder / "a-red-mushroom-4"
    run = ge3d_jax.generate(
        config=folder / "config.json", out=tmp_path / "run", preview_every=0, progress=False
    )
    for name in ("object.ply", "views.png", "turntable.gif", "viewer.html", "config.json"):
        assert (run.folder / name).read_bytes() == (folder / name).read_bytes(), name


def test_seeds_of_a_sweep_are_those_runs_but_for_rounding(made, sweep, tmp_path):
    alone = sweep(tmp_path, seeds=[3])
    one, other = (load_ply(folder / NAMES[0] / "object.ply") for folder in (alone.folder, made.folder))
    same_but_for_rounding(one, other)
    assert not np.allclose(one.sh, load_ply(made.folder / NAMES[1] / "object.ply").sh, atol=1e-3)


def test_the_table_and_the_sheet_tell_of_every_object(made):
    with open(made.folder / "sweep.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt"], row["seed"], row["status"], row["folder"]) for row in rows] == [
        (PROMPT, "3", "finished", NAMES[0]),
        (PROMPT, "4", "finished", NAMES[1]),
    ]
    assert all(float(row["loss"]) > 0 and int(row["splats"]) == 50 and row["reason"] == "" for row in rows)
    with Image.open(made.folder / "contact_sheet.png") as sheet:
        assert sheet.width > 2 * 128 and sheet.height > 128
    assert all(float(row["seconds"]) > 0 for row in rows)
    listed = json.loads((made.folder / "sweep.json").read_text())["objects"]
    assert [one["folder"] for one in listed] == list(NAMES)


def test_finished_objects_are_left_alone_and_more_may_be_asked_for(made, sweep, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(made.folder, folder)
    times = {name: (folder / name / "object.ply").stat().st_mtime_ns for name in NAMES}
    with pytest.raises(UserError, match="already holds a sweep"):
        sweep(folder)
    result = sweep(folder, seeds=(3, 4, 5), resume=True)
    assert result.is_complete and len(result.outcomes) == 3
    assert {name: (folder / name / "object.ply").stat().st_mtime_ns for name in NAMES} == times
    with pytest.raises(UserError, match=r"started with settings.iterations = 3, not 4"):
        sweep(folder, overrides=SMALL | {"iterations": 4}, resume=True)


def test_a_complete_object_whose_metrics_are_lost_is_finished(made, sweep, tmp_path):
    shutil.copytree(made.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "outcomes" / f"{NAMES[0]}.json").unlink()
    (tmp_path / NAMES[0] / "metrics.jsonl").unlink()
    result = sweep(tmp_path, resume=True)
    assert [outcome.status for outcome in result.outcomes] == ["finished"] * 2
    assert (result.outcomes[0].loss, result.outcomes[0].iterations) == (None, 3)


def test_objects_that_start_from_the_same_file_share_what_was_read(made, tmp_path, model):
    start, starts = made.folder / NAMES[0] / "object.ply", {}
    overrides = {name: value for name, value in SMALL.items() if not name.startswith("start.")}
    asked = asked_by_preset("toybox64", guidance=None, density=None, start=start, overrides=overrides)
    first, second = (
        ObjectRequest.checked(asked.but(prompt=PROMPT, seed=seed), model, out=tmp_path, starts=starts)
        for seed in (3, 4)
    )
    assert first.started is second.started and len(starts) == 1


def test_a_failed_object_is_recorded_and_does_not_stop_the_others(made, sweep, tmp_path):
    # One seed's splats cannot be written, because a folder has the name of their temporary file.
    taken = tmp_path / NAMES[0] / f".object.{process_mark()}.part.ply"
    taken.mkdir(parents=True)
    result = sweep(tmp_path)
    failed, finished = result.outcomes
    assert (failed.status, finished.status) == ("failed", "finished")
    assert "Is a directory" in failed.reason and not result.is_complete
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 2 and failed.reason.split(":")[0] in page
    # Failed objects are retried.
    taken.rmdir()
    assert sweep(tmp_path, resume=True).is_complete
    one, other = (load_ply(folder / NAMES[0] / "object.ply") for folder in (tmp_path, made.folder))
    same_but_for_rounding(one, other)


def test_a_stopped_sweep_goes_on_where_it_was(made, sweep, tmp_path, monkeypatch):
    on_iteration = SweepBar.on_iteration

    def interrupt(self, done, numbers, state):
        if done == 1 and not self.is_stopping:
            signal.raise_signal(signal.SIGINT)
        return on_iteration(self, done, numbers, state)

    with monkeypatch.context() as patch:
        patch.setattr(SweepBar, "on_iteration", interrupt)
        stopped = sweep(tmp_path)
    assert stopped.interrupted and {one.status for one in stopped.outcomes} == {"pending"}
    assert all((tmp_path / name / "state").is_dir() for name in NAMES)
    # A kill between saving the states of two seeds leaves one of them behind.
    shutil.rmtree(tmp_path / NAMES[1] / "state")
    result = sweep(tmp_path, resume=True)
    assert result.is_complete
    for name in NAMES:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3]
        one, other = (load_ply(folder / name / "object.ply") for folder in (tmp_path, made.folder))
        same_but_for_rounding(one, other)


def test_lines_have_settings_of_their_own(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text('a red mushroom\na blue robot\tguidance=sds prompts.negative_prompt="a b"\n')
    first, second = read_lines(file)
    # A byte order mark, as some editors write it, is no part of the first prompt.
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert read_lines(file)[0].prompt == "a red mushroom"
    assert (first.prompt, first.changes) == ("a red mushroom", {})
    assert second.changes == {"guidance": "sds", "prompts.negative_prompt": "a b"}
    assert first.folder_name("a red mushroom", 2) == "a-red-mushroom-2"
    third = dataclasses.replace(second, changes={"views": "2"})
    names = {line.folder_name("a blue robot", 2) for line in (second, third)}
    assert len(names) == 2 and all(name.startswith("a-blue-robot-") and name.endswith("-2") for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red mushroom\n\n", "line 2: there is no prompt"),
        ("a red mushroom\n\tviews=2\n", "line 2: there is no prompt"),
        ("a red mushroom\tviews\n", "line 1: 'views' is no setting"),
        ("a red mushroom\n a red zebra\n", 'line 2: The bundled model does not know "zebra"'),
        ("a red mushroom\tviwes=2\n", "line 1: The setting 'viwes' does not exist"),
        ("a red mushroom\tguidance=magic\n", "line 1: The loss 'magic' does not exist"),
        ("a red mushroom\na red mushroom\n", "with seed 3 is there twice .*line 1 and .*line 2"),
        ("a red mushroom\nA red mushroom\n", "would be written to one folder"),
        ("", "is empty"),
    ],
)
def test_a_line_that_cannot_be_is_named(sweep, tmp_path, text, message):
    file = tmp_path / "prompts.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        sweep(tmp_path / "out", prompts=None, file=file)
    assert not (tmp_path / "out").exists()


def test_what_else_cannot_be_is_refused_before_anything_runs(sweep, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no seeds"):
        sweep(out, seeds=[])
    with pytest.raises(UserError, match="with seed 1 is there twice;"):
        sweep(out, seeds=[1, 1])
    with pytest.raises(UserError, match="prompts and a prompt file"):
        sweep(out, file=tmp_path / "prompts.txt")
    with pytest.raises(UserError, match="cannot be read"):
        sweep(out, prompts=None, file=tmp_path / "missing.txt")
    with pytest.raises(UserError, match="no prompt"):
        sweep(out, prompts=None)
    with pytest.raises(UserError, match="at_a_time is 0"):
        sweep(out, at_a_time=0)
    with pytest.raises(UserError, match="'seeds' cannot be shared; choose one of objects, views"):
        sweep(out, share="seeds")
    with pytest.raises(UserError, match="leave at_a_time out"):
        sweep(out, share="views", at_a_time=2)
    with pytest.raises(UserError, match="only one process"):
        sweep(out, share="views")
    with pytest.raises(UserError, match="shared_nodes is false"):
        sweep(out, overrides=SMALL | {"shared_nodes": False})
    with pytest.raises(UserError, match=r"The seed is -1"):
        sweep(out, seeds=[-1])
    assert not out.exists()


def test_an_object_of_another_run_is_not_continued(made, sweep, tmp_path):
    (tmp_path / NAMES[1]).mkdir()
    shutil.copy(made.folder / NAMES[1] / "config.json", tmp_path / NAMES[1])
    with pytest.raises(UserError, match=f"{NAMES[1]} already holds a run; give another folder"):
        sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAMES[1]]


def test_two_sweeps_do_not_write_to_one_folder(sweep, tmp_path):
    with SweepFolder(tmp_path, []).locked(0), pytest.raises(UserError, match="Another sweep is writing"):
        sweep(tmp_path)


@pytest.mark.parametrize("share", ["objects", "views"])
def test_two_processes_make_what_one_makes(share, made, model, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "experiments/sweep.py", f"--prompt={PROMPT}", "--seeds=3,4"]
    command += [f"--model={model}", f"--out={tmp_path}", "--preview_every=0", "--save_seconds=0"]
    command += [f"--set={name}={value}" for name, value in SMALL.items()]
    command += [f"--coordinator=localhost:{port}", "--processes=2", f"--share={share}"]
    started = [
        subprocess.Popen(
            [*command, f"--process={index}"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    told = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert all("2 of 2 objects" in one for one in told)
    for name in NAMES:
        one, other = (load_ply(folder / name / "object.ply") for folder in (tmp_path, made.folder))
        same_but_for_rounding(one, other)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(f'src="{name}/turntable.gif"' in page for name in NAMES)


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("0-3,7, 12-12") == [0, 1, 2, 3, 7, 12]
    for text in ("", ",", "a", "3-1", "-1", "1-"):
        with pytest.raises(UserError, match="seeds"):
            parse_seeds(text)


def test_every_object_belongs_to_one_process():
    objects = list(range(10))
    shares = [share_of(objects, process, 4) for process in range(4)]
    assert [one for share in shares for one in share] == objects
    assert {len(share) for share in shares} == {2, 3}
    with pytest.raises(UserError, match="4 processes for 3 objects"):
        share_of(objects[:3], 0, 4)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_what_finds_no_room_is_named_and_written_later(made, sweep, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(made.folder, folder)
    (folder / "outcomes" / f"{NAMES[0]}.json").unlink()
    for name in (
        f"outcomes/.{NAMES[0]}.{process_mark()}.part.json",
        f".contact_sheet.{process_mark()}.part.png",
    ):
        (folder / name).symlink_to("/dev/full")
    result = sweep(folder, resume=True)
    assert result.unwritten == [
        f"outcomes/{NAMES[0]}.json could not be written (No space left on device).",
        "contact_sheet.png could not be written (No space left on device).",
    ]
    assert [one.status for one in result.outcomes] == ["pending", "finished"]
    again = sweep(folder, resume=True)
    assert again.is_complete and again.unwritten == []


def test_an_outcome_whose_object_is_gone_is_pending(made, sweep, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(made.folder, folder)
    (folder / NAMES[0] / "object.ply").unlink()
    assert sweep(folder, resume=True).is_complete
    (folder / "outcomes" / f"{NAMES[0]}.json").write_text("{}")
    with pytest.raises(UserError, match="does not describe an object's outcome"):
        sweep(folder, resume=True)
