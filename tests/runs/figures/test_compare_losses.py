"""Table 1 on a tiny model: results, messages, and a stopped run."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.clip import load_text_tower, load_vision_tower
from ge3d_jax.metrics.clip_similarity import clip_similarity
from ge3d_jax.runs.evaluation_prompts import check_prompts
from ge3d_jax.runs.figures import compare_losses
from ge3d_jax.runs.figures.base import Work, write_made
from ge3d_jax.runs.figures.loss_settings import EQUAL_TIMES, OWN_LENGTHS
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.judged import see
from ge3d_jax.runs.trials import Trial
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.viewer.sheet import to_uint8
from tests import tiny_clip
from tests.runs.figures.observed import Stopped
from tests.runs.figures.tiny_losses import (
    PROMPTS,
    SDS,
    dark_grays,
    done_by_hand,
    tiny_judges,
    tiny_settings,
)

SETTINGS = tiny_settings(own_length=1)


@pytest.fixture(scope="module")
def judges():
    return tiny_judges()


@pytest.fixture(scope="module")
def make(tiny_place, judges):

    def make(folder, settings=SETTINGS, report=lambda line: None, **how):
        work = Work("small", folder, str(tiny_place), report)
        return compare_losses.make(work, settings=settings, judges=judges, **how)

    return make


@pytest.fixture(scope="module")
def stopped(make, tmp_path_factory):
    """The folder of a run stopped after three objects, and its messages so far."""
    folder, lines = tmp_path_factory.mktemp("stopped"), []

    def report(line):
        lines.append(line)
        if " 3/4: " in line:
            raise Stopped

    with pytest.raises(UserError, match=r"Nothing is done in .*stopped.* yet"):
        make(folder, only_done=True)
    with pytest.raises(Stopped):
        make(folder, report=report)
    return folder, lines


@pytest.fixture(scope="module")
def gone_on(make, stopped, tmp_path_factory):
    """The folder after the run was resumed, the results, and the new messages."""
    folder, lines = tmp_path_factory.mktemp("gone_on") / "work", []
    shutil.copytree(stopped[0], folder)
    return folder, make(folder, report=lines.append), lines


def test_a_stopped_run_goes_on_with_the_next_object(stopped, gone_on):
    before, after = (
        {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*.*"))}
        for folder in (stopped[0], gone_on[0])
    )
    # The splats and evaluations of three objects, and the pace of the loss.
    assert len([file for file in before if file.suffix == ".npz"]) == 6
    assert {file: after[file] for file in before} == before
    assert [line.partition(": ")[0].rpartition(" ")[2] for line in gone_on[2]] == ["4/4", "1/1"]
    assert "a blue duck, seed 1, " in gone_on[2][0] and " iterations in " in gone_on[2][0]


def test_it_ends_in_the_same_files(make, stopped, gone_on, tmp_path):
    folder, made, _ = gone_on
    # Use the same pace as the other run.
    paced = tmp_path / "work" / "equal_times" / SDS.folder_name
    paced.mkdir(parents=True)
    shutil.copy(folder / "equal_times" / SDS.folder_name / "pace.json", paced)
    whole = make(tmp_path / "work")
    timeless = [{name: row[name] for name in row if name != "seconds"} for row in whole.rows]
    assert timeless == [{name: row[name] for name in row if name != "seconds"} for row in made.rows]
    for suffix in ("", "own_lengths"):
        np.testing.assert_array_equal(whole.pictures[suffix], made.pictures[suffix])
    # If everything exists already, the files are identical to the byte.
    lines = []
    for out in (tmp_path / "one", tmp_path / "two"):
        again = make(folder, report=lines.append) if out.name == "two" else made
        write_made(again, name="compare_losses", command="", out=out)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == [f"compare_losses{end}" for end in (".csv", ".json", ".md", ".png", "_own_lengths.png")]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert lines == []


def test_what_is_done_so_far_is_shown_without_making_more(make, stopped):
    before = sorted(stopped[0].rglob("*"))
    made = make(stopped[0], only_done=True)
    assert sorted(stopped[0].rglob("*")) == before
    assert "\n3 of 4 objects so far, 2 prompts with 2 seeds" in made.text and OWN_LENGTHS not in made.text
    rows = [row for row in made.rows if "prompt" in row]
    assert [(row["prompt"], row["seed"]) for row in rows] == [
        (PROMPTS[0], 0),
        (PROMPTS[0], 1),
        (PROMPTS[1], 0),
    ]
    # The diversity of the only prompt with two seeds.
    (together,) = [row for row in made.rows if "prompt" not in row]
    assert together["shape_diversity"] is not None and together["shape_diversity_error"] is None


def test_every_object_has_its_line(gone_on):
    _, made, _ = gone_on
    rows = [row for row in made.rows if "prompt" in row]
    assert [row["part"] for row in rows] == [EQUAL_TIMES] * 4 + [OWN_LENGTHS]
    timed, own = rows[:4], rows[4]
    assert {(row["prompt"], row["seed"]) for row in timed} == {(p, s) for p in PROMPTS for s in (0, 1)}
    pace = json.loads((gone_on[0] / "equal_times" / SDS.folder_name / "pace.json").read_text())["numbers"]
    assert pace["iterations"] == int(0.2 / pace["seconds_per_iteration"])
    assert {row["iterations"] for row in timed} == {pace["iterations"]}
    assert (own["prompt"], own["seed"], own["iterations"]) == (PROMPTS[0], 0, 3)
    assert all(row["seconds"] > 0 and row["psnr"] > 0 and row["loss"] == SDS.label for row in rows)


def test_the_tables_are_means_over_prompts(gone_on):
    _, made, _ = gone_on
    timed = [row for row in made.rows if row["part"] == EQUAL_TIMES and "prompt" in row]
    first, second = made.text.split("### Own lengths")
    assert first.startswith(
        "### Equal times\n\n4 objects, 2 prompts with 2 seeds: as many iterations as fit 0.2 s"
    )
    assert second.startswith("\n\n1 object, 1 prompt with 1 seed: the iterations of the preset `toybox64`")
    header, _, line = first.strip().splitlines()[-3:]
    assert header == "| loss, iterations | PSNR to the truth, dB ↑ | diversity of shape ↑ | seconds ↓ |"
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == f"`{SDS.label}`, {timed[0]['iterations']}"
    assert cells[1].split(" ± ")[0] == f"{np.mean([row['psnr'] for row in timed]):.1f}"
    (together,) = [row for row in made.rows if row["part"] == EQUAL_TIMES and "prompt" not in row]
    assert cells[2].startswith(f"{together['shape_diversity']:.3f} ± ")


def test_the_picture_has_the_truth_above_the_losses(gone_on, judges):
    _, made, _ = gone_on
    picture = made.pictures[""]
    assert picture.dtype == np.uint8 and picture.shape[0] > 2 * 128 and picture.shape[1] > 4 * 128
    truth = to_uint8(judges.truths[PROMPTS[1]].pictures[[0, 4]])
    for side in truth:
        assert _is_in(side, picture[:170])
    # For a single prompt, the picture shows the front and back of one object.
    assert made.pictures["own_lengths"].shape[1] < picture.shape[1]


def test_rows_and_pictures_are_those_of_the_end_of_a_run():
    numbers = [{"iterations": 5, "psnr": 10.0}, {"iterations": 20, "psnr": 14.0}]
    together = {"shape_diversity": 0.5}
    first = done_by_hand("sds", (20, 10), numbers, prompts=("a red duck", "a red duck"), together=together)
    second = done_by_hand("ism", (50, 30), numbers, prompts=("a red pig",))
    expected = {"part": EQUAL_TIMES, "loss": "sds", "prompt": "a red duck", "iterations": 20, "psnr": 14.0}
    assert compare_losses.rows_of(EQUAL_TIMES, [first]) == [
        expected | {"seed": 0},
        expected | {"seed": 1},
        {"part": EQUAL_TIMES, "loss": "sds", "shape_diversity": 0.5},
    ]
    truth = {"a red pig": np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None, None, None], (4, 8, 8, 3))}
    grays = dark_grays(compare_losses.draw([first, second], truth))
    # Fronts and backs of each prompt's first object, and of the ground truth.
    assert set(grays) == {10, 12, 30, 32, 0, 2}
    assert grays[10][1] < grays[12][1] < grays[30][1] < grays[32][1]
    assert grays[0][1] == grays[30][1] and grays[2][1] == grays[32][1]
    assert grays[0][0] < grays[10][0] < grays[30][0]


def _is_in(part, whole):
    """Whether the middle row of a picture is contained in a row of another one."""
    middle = part[len(part) // 2].tobytes()
    return any(middle in line.tobytes() for line in whole)


def test_a_clip_adds_its_columns(make, gone_on, judges, tmp_path):
    folder, clip = tmp_path / "work", tiny_clip.save(tmp_path / "clip")
    shutil.copytree(gone_on[0], folder)
    settings = tiny_settings(
        metrics=("psnr", "clip_similarity", "r_precision", "cmmd", "fid"), clip=str(clip)
    )
    lines = []
    shown = make(folder, settings, lines.append, only_done=True)
    assert not list(folder.rglob("*weighed*"))
    made = make(folder, settings)
    assert made.rows == shown.rows and made.text == shown.text
    rows = [row for row in made.rows if "prompt" in row]
    gaussians = splats_of(folder, PROMPTS[1], 1)
    pictures = see(PROMPTS[1], 1, gaussians, truth=judges.truths[PROMPTS[1]]).pictures
    seen = load_vision_tower(clip).features(list(to_uint8(pictures)))
    text = np.asarray(load_text_tower(clip).features([PROMPTS[1]]))[0]
    assert rows[3]["clip_similarity"] == pytest.approx(clip_similarity(seen, text), abs=1e-6)
    assert rows[3]["psnr"] > 0
    (together,) = [row for row in made.rows if "prompt" not in row]
    assert together["cmmd"] > 0 and 0 <= together["r_precision"] <= 1 and "shape_diversity" in together
    assert "| CLIP similarity ↑ | R-precision by CLIP ↑ | CMMD ↓ |\n" in made.text
    assert lines == [made.text.splitlines()[-1]] and lines[0].startswith(
        "FID is left out: FID needs the Inception"
    )
    # A different CLIP model reuses the records of the objects, but no scores of the first model.
    other = make(folder, replace(settings, clip=str(tiny_clip.save(tmp_path / "other", "gelu"))))
    assert other.rows[3]["clip_similarity"] != rows[3]["clip_similarity"]
    assert other.rows[3]["psnr"] == rows[3]["psnr"]
    with pytest.raises(UserError, match="nowhere"):
        make(folder, replace(settings, clip=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="There is no file .*nowhere.pth; download pt_inception"):
        make(folder, replace(settings, inception=str(tmp_path / "nowhere.pth")))


def splats_of(folder, prompt, seed):
    """The splats of an object, read directly from its record."""
    with np.load(folder / "equal_times" / SDS.folder_name / f"{slug(prompt)}-{seed}.npz") as record:
        return Gaussians(**{name: record[name][-1] for name in record})


def test_records_of_another_run_are_refused(make, gone_on):
    with pytest.raises(UserError, match="pace.json was made with another seconds; give another folder"):
        make(gone_on[0], tiny_settings(budget=0.3), only_done=True)
    with pytest.raises(UserError, match="was made with another processes"):
        make(gone_on[0], tiny_settings(processes=2), only_done=True)


def test_more_prompts_and_losses_may_be_asked_for(gone_on, make, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(gone_on[0], folder)
    lines = []
    made = make(folder, tiny_settings(prompts=(*PROMPTS, "a green lamp"), seeds=(1,)), report=lines.append)
    assert len(lines) == 1 and " 3/3: a green lamp, seed 1, " in lines[0]
    assert "3 objects, 3 prompts with 1 seed" in made.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": 0.0}, "A budget of 0 seconds is too short for one iteration"),
        ({"budget": float("nan")}, "A budget of nan seconds is too short"),
        ({"budget": 1e-7}, r"sds .*: A budget of 1e-07 seconds is too short: one iteration takes"),
        ({"prompts": ("a red mushroom", "a red dragon")}, "dragon"),
        ({"trials": (SDS, Trial("nothing"))}, "The loss 'nothing' does not exist"),
        ({"trials": (Trial("sds", {"colour": "2"}),)}, "colour"),
        ({"seeds": (-1,)}, "seed"),
        ({"processes": 10_000}, r"10000 processes .* give fewer with --processes"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(make, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        make(tmp_path, tiny_settings(**changes))
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("size", ["small", "full"])
def test_the_prompts_can_be_judged(size):
    settings = compare_losses.SIZES[size]
    check_prompts(settings.prompts)
    assert settings.processes == 2 and set(settings.metrics) >= {
        "views_right",
        "multi_faced",
        "psnr",
        "chamfer",
    }


def test_the_full_size_is_what_was_promised():
    full = compare_losses.SIZES["full"]
    assert len(full.trials) == 12 and len(full.prompts) == 8 and len(full.seeds) == 2 and full.budget >= 45
    assert full.own_length == 3


def test_the_settings_of_the_paper_check_out():
    paper = compare_losses.SIZES["paper"]
    assert len(paper.prompts) == 7 and paper.processes == 1 and paper.own_length == 7
    for trial in paper.trials:
        assert trial.settings(paper.preset).image_size >= 256
    assert Trial("ge3d").settings("paper").iterations == 3000
    assert Trial("sds").settings("paper").iterations == 10_000
