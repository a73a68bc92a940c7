"""Complete runs on a tiny random model: output files, rejected inputs, and stopping."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ge3d_jax
from ge3d_jax.cli import script
from ge3d_jax.core.errors import RunDropped, UserError
from ge3d_jax.core.files import process_mark
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.formats.ply import load_ply
from ge3d_jax.runs.edit import edit_2d
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.observers import Observer
from ge3d_jax.runs.progress import RunProgress, gentle_interrupt
from ge3d_jax.runs.request import check_picture_size, pair_loras
from ge3d_jax.training.presets import PRESETS
from tests.tiny_model import IMAGE_SIZE, SMALL

HAS_MESH = importlib.util.find_spec("mcubes") is not None
ROOT = Path(__file__).parent.parent.parent
PROMPT = "a red mushroom"
needs_full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


@pytest.fixture(scope="module")
def result(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return ge3d_jax.generate(
        PROMPT,
        model=model,
        out=out,
        overrides=SMALL,
        preview_every=2,
        progress=False,
        seed=3,
        mesh=HAS_MESH,
    )


def test_everything_is_written(result):
    names = {str(path.relative_to(result.folder)) for path in result.folder.rglob("*") if path.is_file()}
    # The state allows resuming with more iterations.
    assert any(name.startswith("state/") for name in names)
    assert {name for name in names if not name.startswith(("state/", "mesh.glb"))} == {
        ".lock",
        "object.ply",
        "turntable.mp4",
        "turntable.gif",
        "views.png",
        "viewer.html",
        "config.json",
        "metrics.jsonl",
        "previews/iteration_00002.png",
    }
    # The mesh may be missing with a message, because the splats are few and soft.
    assert HAS_MESH == (
        ("mesh.glb" in names) != any(line.startswith("mesh.glb") for line in result.unwritten)
    )
    assert not result.interrupted and result.iterations == 3
    assert result.frames.dtype == np.uint8 and result.frames.ndim == 4


def test_results_are_seen_as_the_views_at_the_end(result):
    (told,) = re.findall(r'{"azimuth": 0\.0.*?}', (result.folder / "viewer.html").read_text(encoding="utf-8"))
    cameras = json.loads((result.folder / "config.json").read_text())["settings"]["cameras"]
    assert json.loads(told) == {
        "azimuth": 0.0,
        "polar": pytest.approx(np.deg2rad(np.mean(cameras["polar_degrees"]))),
        "radius": pytest.approx(np.mean(cameras["radius_end"])),
        "fov": pytest.approx(np.mean(cameras["fov_radians_end"])),
    }


def test_files_say_what_was_done(result):
    config = json.loads((result.folder / "config.json").read_text())
    assert (config["prompt"], config["seed"], config["settings"]["iterations"]) == (PROMPT, 3, 3)
    assert config["settings"]["scene"]["start"]["count"] == 50
    assert config["settings"]["guidance"]["kind"] == "ge3d"
    assert "jax" in config["versions"]
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.metrics
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines)
    saved = load_ply(result.folder / "object.ply")
    assert saved.capacity == int(result.gaussians.mask.sum()) == lines[-1]["splats"]


def test_notebooks_show_the_sheet(result):
    assert result._repr_png_() == (result.folder / "views.png").read_bytes()
    with Image.open(result.folder / "views.png") as sheet:
        assert sheet.width > 4 * 200 and sheet.height > 2 * 200


def test_same_seed_same_bytes_and_old_results_go(model, result, tmp_path):
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "iteration_00099.png").write_bytes(b"old")
    again = ge3d_jax.generate(
        PROMPT, model=model, out=tmp_path, overrides=SMALL, preview_every=2, progress=False, seed=3
    )
    for name in ("object.ply", "views.png", "turntable.gif", "previews/iteration_00002.png"):
        assert (again.folder / name).read_bytes() == (result.folder / name).read_bytes(), name
    assert not (tmp_path / "previews" / "iteration_00099.png").exists()


def test_a_run_can_be_repeated_from_its_file(model, result, tmp_path):
    file = result.folder / "config.json"
    again = ge3d_jax.generate(config=file, out=tmp_path / "a", preview_every=0, progress=False)
    assert (again.prompt, again.seed) == (PROMPT, 3)
    assert (again.folder / "object.ply").read_bytes() == (result.folder / "object.ply").read_bytes()
    assert (again.folder / "config.json").read_bytes() == file.read_bytes()
    other = ge3d_jax.generate(config=file, seed=4, out=tmp_path / "b", preview_every=0, progress=False)
    assert (other.prompt, other.seed, other.iterations) == (PROMPT, 4, 3)
    assert (other.folder / "object.ply").read_bytes() != (result.folder / "object.ply").read_bytes()


def test_restyle_begins_with_the_given_splats(model, result, tmp_path):
    again = ge3d_jax.generate(
        "a blue mushroom",
        model=model,
        out=tmp_path,
        start=result.folder / "object.ply",
        # The file determines the number of splats.
        overrides={name: value for name, value in SMALL.items() if not name.startswith("start.")},
        preview_every=0,
        progress=False,
    )
    before, after = load_ply(result.folder / "object.ply"), load_ply(tmp_path / "object.ply")
    assert before.capacity == after.capacity == 50
    moved = np.abs(np.asarray(after.positions - before.positions)).max()
    assert 0 < moved < 0.1
    assert not (again.folder / "previews").exists()


class At(Observer):
    """Calls a function after an iteration."""

    def __init__(self, number, action):
        self.number, self.action = number, action

    def on_iteration(self, done, numbers, state):
        if done == self.number:
            self.action()
        return False


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def die():
    raise RuntimeError


def test_interrupt_keeps_the_object_as_it_stands(model, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    stopped = ge3d_jax.generate(
        PROMPT,
        model=model,
        out=tmp_path,
        overrides=SMALL,
        preview_every=0,
        progress=False,
        observers=[At(2, press_ctrl_c)],
    )
    assert stopped.interrupted and stopped.iterations == len(stopped.metrics) == 2
    assert load_ply(tmp_path / "object.ply").capacity == 50
    assert (tmp_path / "views.png").is_file()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_broken_off_run_resumes_to_the_same_bytes(model, result, tmp_path):
    run = {"model": model, "out": tmp_path, "seed": 3, "preview_every": 2, "progress": False}
    run |= {"overrides": SMALL, "save_seconds": 0}
    with pytest.raises(RuntimeError):
        ge3d_jax.generate(PROMPT, **run, observers=[At(3, die)])
    with pytest.raises(UserError, match="started with settings.views = 1, not 2"):
        ge3d_jax.generate(PROMPT, **run | {"overrides": SMALL | {"views": 2}}, resume=True)
    with pytest.raises(UserError, match="settings.guidance.scale = 2.0, not 5"):
        ge3d_jax.generate(PROMPT, **run | {"overrides": SMALL | {"guidance.scale": 5}}, resume=True)
    resumed = ge3d_jax.generate(PROMPT, **run, resume=True)
    assert [line["iteration"] for line in resumed.metrics] == [1, 2, 3]
    for name in ("object.ply", "views.png"):
        assert (tmp_path / name).read_bytes() == (result.folder / name).read_bytes(), name
    # A finished run writes missing files, and continues if more iterations are requested.
    (tmp_path / "object.ply").unlink()
    assert ge3d_jax.generate(PROMPT, **run, resume=True).iterations == 3
    assert (tmp_path / "object.ply").read_bytes() == (result.folder / "object.ply").read_bytes()
    run |= {"overrides": SMALL | {"iterations": 4}}
    more = ge3d_jax.generate(PROMPT, **run, resume=True)
    assert [line["iteration"] for line in more.metrics] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["iterations"] == 4
    run |= {"overrides": SMALL | {"iterations": 3}}
    with pytest.raises(UserError, match="has done 4 iterations already; ask for more"):
        ge3d_jax.generate(PROMPT, **run, resume=True)


def test_a_run_that_saved_nothing_begins_and_says_so(model, result, tmp_path, capfd):
    run = {"model": model, "out": tmp_path, "seed": 3, "preview_every": 0, "overrides": SMALL}
    with pytest.raises(RuntimeError):
        ge3d_jax.generate(PROMPT, **run, progress=False, observers=[At(2, die)])
    (tmp_path / ".views.1.part.png").write_text("left by one that was killed")
    ge3d_jax.generate(PROMPT, **run, resume=True)
    assert f"Nothing was saved in {tmp_path}: the run starts over." in capfd.readouterr().err
    assert (tmp_path / "object.ply").read_bytes() == (result.folder / "object.ply").read_bytes()
    assert not (tmp_path / ".views.1.part.png").exists()


def test_two_runs_do_not_write_to_one_folder(model, tmp_path):
    def run(**options):
        given = {"model": model, "out": tmp_path, "preview_every": 0, "progress": False, "overrides": SMALL}
        return ge3d_jax.generate(PROMPT, **(given | options))

    def run_beside():
        with pytest.raises(UserError, match="Another run is writing to"):
            run(resume=True)

    assert run(observers=[At(1, run_beside)]).iterations == 3


def full_disk(folder, name):
    """Simulate a full disk for writes to files of this name."""
    stem, _, suffix = name.rpartition(".")
    (folder / f".{stem}.{process_mark()}.part.{suffix}").symlink_to("/dev/full")


@needs_full_disk
def test_what_cannot_be_written_is_named_and_the_rest_is_there(model, result, tmp_path):
    for name in ("views.png", "metrics.jsonl"):
        full_disk(tmp_path, name)
    run = {"model": model, "out": tmp_path, "seed": 3, "preview_every": 0, "overrides": SMALL}
    half = ge3d_jax.generate(PROMPT, **run, progress=False)
    assert half.unwritten == ["views.png could not be written (No space left on device)."]
    # There was room for the metrics at the end.
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3] and len(half.metrics) == 3
    assert not (tmp_path / "views.png").exists() and (tmp_path / "turntable.mp4").is_file()
    whole = ge3d_jax.generate(PROMPT, **run, progress=False, resume=True)
    assert whole.unwritten == []
    for name in ("object.ply", "views.png"):
        assert (tmp_path / name).read_bytes() == (result.folder / name).read_bytes(), name


@needs_full_disk
def test_a_full_disk_at_the_end_keeps_the_state(model, result, tmp_path):
    full_disk(tmp_path, "object.ply")
    run = {"model": model, "out": tmp_path, "seed": 3, "preview_every": 0, "overrides": SMALL}
    with pytest.raises(
        UserError, match=r"could not be written to .* \(No space left on device\).*--resume writes it"
    ):
        ge3d_jax.generate(PROMPT, **run, progress=False)
    assert not list(tmp_path.glob(".*.part*"))
    again = ge3d_jax.generate(PROMPT, **run, progress=False, resume=True)
    assert again.iterations == 3 and again.unwritten == []
    assert (tmp_path / "object.ply").read_bytes() == (result.folder / "object.ply").read_bytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": ""}, "no words"),
        ({"prompt": " !?"}, "no words"),
        ({"prompt": "a red dragon"}, '"dragon"'),
        ({"prompt": None}, "There is no prompt.*say what to make"),
        (
            {"preset": "fast"},
            "'fast' does not exist; use one of paper, toybox64, toybox_ball, toybox, paper/lantern",
        ),
        ({"config": "missing.json"}, "missing.json cannot be read"),
        ({"config": "missing.json", "preset": "paper"}, "Both config and preset are given"),
        ({"config": "missing.json", "guidance": "ge3d"}, "Both config and guidance are given"),
        ({"config": "missing.json", "density": "mcmc"}, "Both config and density are given"),
        ({"guidance": "magic"}, "'magic' does not exist; use one of ge3d"),
        ({"overrides": SMALL | {"scene.rasterizer": "kernel"}}, '"kernel" needs an NVIDIA GPU'),
        ({"density": "magic"}, "use one of clone_split, mcmc, relocate"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**40}, "seed is"),
        ({"start": "missing.ply"}, "missing.ply"),
        ({"model": "missing"}, "There is no model missing; give a folder"),
        ({"dtype": "float16"}, "'float16' does not exist"),
        ({"loras": [("missing.safetensors", 1.0)]}, "missing.safetensors is missing"),
        ({"textual_inversions": ["cat.bin"]}, "cat.bin has an old format"),
        ({"overrides": {"guidance.scal": 3}}, "guidance.scale"),
        ({"overrides": {"iterations": "many"}}, "iterations"),
        ({"overrides": {}, "preset": "paper"}, "image_size is 512"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(model, tmp_path, changes, says):
    arguments = {"prompt": PROMPT, "model": model, "out": tmp_path / "run", "overrides": SMALL} | changes
    with pytest.raises(UserError, match=says):
        ge3d_jax.generate(**arguments, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"image_size": 18}, "multiple of 8"),
        ({"image_size": 4}, "multiple of 8"),
        ({"nodes.max_step": [1500, 300]}, "times of the setting guidance go up to 1499"),
    ],
)
def test_a_refused_run_leaves_earlier_results_as_they_were(model, result, tmp_path, overrides, says):
    folder = tmp_path / "run"
    shutil.copytree(result.folder, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=says):
        ge3d_jax.generate(PROMPT, model=model, out=folder, overrides=SMALL | overrides, progress=False)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_pictures_far_smaller_than_the_model_s_are_refused(model):
    loaded = load_model(model)
    unet = UNet2DConditionModel(dataclasses.replace(loaded.unet.config, sample_size=64))
    with pytest.raises(UserError, match='pictures of 256 pixels .* use the preset "paper"'):
        check_picture_size(with_overrides(PRESETS["toybox"], SMALL), dataclasses.replace(loaded, unet=unet))


@pytest.mark.parametrize(("trained", "warns"), [(IMAGE_SIZE, False), (IMAGE_SIZE * 3 // 2, True)])
def test_pictures_smaller_than_the_model_s_are_warned_of(model, trained, warns):
    loaded = load_model(model)
    downscale = loaded.vae.config.downscale
    unet = UNet2DConditionModel(dataclasses.replace(loaded.unet.config, sample_size=trained // downscale))
    config = with_overrides(PRESETS["toybox"], SMALL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_picture_size(config, dataclasses.replace(loaded, unet=unet))
    told = [str(warning.message) for warning in caught]
    assert len(told) == warns
    if warns:
        assert f"image_size is {IMAGE_SIZE}" in told[0] and f"set image_size to {trained}" in told[0]


def test_output_folder_that_is_a_file(model, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken cannot be written to"):
        ge3d_jax.generate(PROMPT, model=model, out=tmp_path / "taken", overrides=SMALL, progress=False)


def test_edit_2d_of_a_sentence_and_of_a_picture(model, tmp_path):
    folder = edit_2d(
        "a blue mushroom", source_prompt=PROMPT, model=model, max_step=300, nodes=2, out=tmp_path / "a"
    )
    assert {path.name for path in folder.glob("[!.]*")} == {
        "nodes.png",
        "edited.png",
        "source.png",
        "config.json",
    }
    edit_2d(PROMPT, image=folder / "source.png", model=model, max_step=300, nodes=2, out=tmp_path / "b")
    with Image.open(tmp_path / "b" / "nodes.png") as picture:
        assert picture.width > 3 * 190 and picture.height > 2 * 190


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "image and source_prompt are given; give one"),
        ({"image": "a.png", "source_prompt": PROMPT}, "image and source_prompt are given; give one"),
        ({"image": "missing.png"}, "missing.png"),
        ({"source_prompt": "mushroom"}, "not a sentence"),
        ({"source_prompt": PROMPT, "max_step": 1000}, "max_step is 1000"),
        ({"source_prompt": PROMPT, "nodes": 0}, "nodes is 0"),
    ],
)
def test_edit_2d_refuses(model, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        edit_2d(PROMPT, model=model, out=tmp_path, **changes)


def test_slugs():
    assert slug("A red  mushroom, please!") == "a-red-mushroom-please"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("Ein grüner Bär") == "ein-grüner-bär"
    assert slug("…") == ""
    assert len(slug("word " * 100)) <= 60


def test_settings_on_the_command_line():
    assert script.parse_settings(["views=2", "guidance.negative_prompt=a=b"]) == {
        "views": "2",
        "guidance.negative_prompt": "a=b",
    }
    for bad in ("views", "=3"):
        with pytest.raises(UserError, match="--set="):
            script.parse_settings([bad])


def test_strengths_are_for_all_loras_or_for_each():
    assert pair_loras([], []) == []
    assert pair_loras(["a", "b"], []) == [("a", 1.0), ("b", 1.0)]
    assert pair_loras(["a", "b"], [0.5]) == [("a", 0.5), ("b", 0.5)]
    assert pair_loras(["a", "b"], [0.5, -1.0]) == [("a", 0.5), ("b", -1.0)]
    for files, strengths in ((["a", "b", "c"], [1.0, 2.0]), ([], [1.0])):
        with pytest.raises(UserError, match="one strength for all files, or one for each"):
            pair_loras(files, strengths)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_asks_and_second_ends(number):
    before = signal.getsignal(number)
    with RunProgress(1, enabled=False) as progress, gentle_interrupt(progress) as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        # Unlike a plain Ctrl-C, after which a run returns its partial result.
        with pytest.raises(RunDropped):
            signal.raise_signal(signal.SIGINT)
        # The other signals end the process even within a long-running program.
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("arguments", [["--prompt=a red dragon"], ["--prompt=a cat", "--no_such_flag=1"]])
def test_script_tells_a_mistake_in_one_line(model, arguments):
    finished = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "generate.py"), f"--model={model}", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert finished.returncode == 2 and finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1 and finished.stderr.startswith("generate.py: ")
