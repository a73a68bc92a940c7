"""Losses that start from the ground truth, on a tiny model: fits, objects, messages, and a stopped run."""

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply import load_ply
from ge3d_jax.runs.evaluation_prompts import check_prompts
from ge3d_jax.runs.figures import from_truth
from ge3d_jax.runs.figures.base import Work, write_made
from ge3d_jax.runs.figures.from_truth import SIZES, Settings, ends_of
from ge3d_jax.training.presets import configured
from tests.runs.figures.observed import Stopped, files_of
from tests.runs.figures.tiny_losses import PROMPTS, TINY, dark_grays, done_by_hand, tiny_judges

SETTINGS = Settings(
    "toybox64",
    ("sds",),
    PROMPTS[:1],
    (0.4,),
    fit_views=2,
    fit_size=16,
    fit_iterations=2,
    fit_splats=120,
    processes=1,
    overrides={name: value for name, value in TINY.items() if name != "start.count"},
)


@pytest.fixture(scope="module")
def make(tiny_place):
    judges = tiny_judges()

    def make(folder, report=lambda line: None, settings=SETTINGS):
        made = from_truth.make_of(settings, Work("small", folder, str(tiny_place), report), judges)
        write_made(made, name="from_truth", command="", out=folder / "out")
        return made

    return make


@pytest.fixture(scope="module")
def made(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("from_truth")
    return folder, make(folder)


def test_every_object_begins_with_the_fit_of_its_truth(made):
    folder, whole = made
    fit = load_ply(folder / "fits" / "a-red-mushroom" / "object.ply")
    assert 0 < fit.mask.sum() <= 120
    first, middle, last = whole.rows
    assert [row["iterations"] for row in whole.rows] == [0, 1, 3]
    assert [row["share"] for row in whole.rows] == pytest.approx([0.0, 1 / 3, 1.0])
    assert {(row["loss"], row["prompt"], row["seed"]) for row in whole.rows} == {("sds", PROMPTS[0], 0)}
    assert first["seconds"] == 0.0 < middle["seconds"] < last["seconds"]
    # After one iteration the object is still close to its start, and then moves away.
    moved = [abs(row["psnr"] - first["psnr"]) for row in (middle, last)]
    assert 0.0 < moved[0] < moved[1] < 3.0
    with np.load(next((folder / "runs").rglob("a-red-mushroom-0.npz"))) as record:
        count = int(record["mask"][0].sum())
    assert count == fit.mask.sum()


def test_the_table_has_the_beginning_and_the_ends(made):
    _, whole = made
    lines = whole.text.replace("**", "").splitlines()
    assert lines[2].startswith(f"| (the fit that all start from) | {whole.rows[0]['psnr']:.1f} |")
    assert lines[3].startswith(f"| sds | {whole.rows[-1]['psnr']:.1f} |")
    assert len(lines) == 4


def test_a_prompt_begins_once_whatever_goes_on_from_it():
    def row(loss, prompt, moment, share):
        return {"loss": loss, "prompt": prompt, "moment": moment, "share": share}

    rows = [
        row(loss, prompt, *at) for loss in "ab" for prompt in "xy" for at in ((0, 0.0), (1, 0.5), (2, 1.0))
    ]
    found = [(one["loss"], one["prompt"]) for one in ends_of(rows)]
    fit = "(the fit that all start from)"
    assert found == [(fit, "x"), (fit, "y"), ("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    assert {one["share"] for one in ends_of(rows)[2:]} == {1.0}


def test_rows_begin_with_the_fit_of_their_prompt():
    moments = [
        {"iterations": 50, "seconds": 5.0, "psnr": 21.0},
        {"iterations": 200, "seconds": 20.0, "psnr": 19.0},
    ]
    done = done_by_hand("ism", (10, 20), moments, prompts=PROMPTS)
    rows = from_truth.rows_of(
        [done], {PROMPTS[0]: {"psnr": 30.0, "seconds": None}, PROMPTS[1]: {"psnr": 31.0}}
    )
    assert [row["psnr"] for row in rows] == [30.0, 21.0, 19.0, 31.0, 21.0, 19.0]
    assert [row["share"] for row in rows] == [0.0, 0.25, 1.0] * 2
    assert [row["seconds"] for row in rows] == [0.0, 5.0, 20.0] * 2
    assert [row["moment"] for row in rows] == [0, 1, 2] * 2 and {row["loss"] for row in rows} == {"ism"}


def test_fronts_stand_in_their_columns():
    long = done_by_hand("ge3d", (10, 20, 30), [{}] * 3, shares=(0.25, 0.5))
    short = done_by_hand("sds", (24, 34), [{}] * 2, shares=(0.25, 0.5))
    fronts = {PROMPTS[0]: np.full((8, 8, 3), 5, np.uint8)}
    grays = dark_grays(from_truth.draw_objects([long, short], fronts))
    assert set(grays) == {5, 10, 20, 30, 24, 34}
    assert grays[5][1] < grays[10][1] < grays[20][1] == grays[24][1] < grays[30][1] == grays[34][1]


def test_pictures_are_the_curves_and_the_objects(made):
    _, whole = made
    assert set(whole.pictures) == {"", "objects"}
    # The start, an intermediate moment, and the end.
    assert 3 * 128 < whole.pictures["objects"].shape[1] < 5 * 128 + 40


def test_a_stopped_figure_goes_on_and_ends_in_the_same_files(make, made, tmp_path):
    def stop(line):
        if line.startswith("sds"):
            raise Stopped

    with pytest.raises(Stopped):
        make(tmp_path, stop)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.np[yz]")}
    told = []
    make(tmp_path, told.append)
    assert told == [] and before and {path: path.stat().st_mtime_ns for path in before} == before
    again, whole = files_of(tmp_path / "out"), files_of(made[0] / "out")
    assert sorted(again) == sorted(whole)
    assert again["from_truth.png"] == whole["from_truth.png"]
    assert again["from_truth_objects.png"] == whole["from_truth_objects.png"]
    with pytest.raises(UserError, match="was made with another views"):
        make(tmp_path, settings=Settings(**{**vars(SETTINGS), "fit_views": 3}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"prompts": ("a red dragon",)}, "dragon"), ({"losses": ("none",)}, "'none' does not exist")],
)
def test_what_cannot_be_is_refused_before_anything_runs(make, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        make(tmp_path, settings=Settings(**{**vars(SETTINGS), **changes}))
    assert not list(tmp_path.iterdir())


def test_where_no_truth_is_known_that_is_said(tmp_path):
    with pytest.raises(UserError, match="'paper' there is no truth .* give --size=small or full"):
        from_truth.make(Work("paper", tmp_path))


@pytest.mark.parametrize("size", SIZES)
def test_settings_can_be_used(size):
    settings = SIZES[size]
    check_prompts(settings.prompts)
    assert all(0 < share < 1 for share in settings.shares) and settings.losses[0] == "ge3d"
    for loss in settings.losses:
        assert configured(settings.preset, guidance=loss).scene.capacity >= settings.fit_splats
