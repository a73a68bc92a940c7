"""Losses side by side: the file of trials, what a trial makes, and the tables."""

import csv
import io

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.metrics.recognition import build_gallery
from ge3d_jax.runs import compare
from ge3d_jax.runs.evaluate import measure_object, object_pictures, true_pictures
from ge3d_jax.splatting.gaussians import make_gaussians


@pytest.fixture(scope="module")
def gallery():
    return build_gallery(("duck", "mushroom"), azimuths=8, polar_degrees=(70.0,))


def test_a_line_is_a_loss_with_its_settings():
    text = "# first\nsds\n\ncds 'guidance.scale=[10, 5]' iterations=20  # brighter\n"
    plain, changed = compare.parse_trials(text, "trials.txt")
    assert (plain.guidance, plain.overrides, plain.changes) == ("sds", {}, "")
    assert (changed.guidance, changed.overrides) == ("cds", {"guidance.scale": "[10, 5]", "iterations": "20"})
    assert changed.changes == "guidance.scale=[10, 5] iterations=20"


def test_trials_that_differ_late_in_a_long_line_have_folders_of_their_own(tmp_path):
    same = {"iterations": "560", "guidance.anneal_iterations": "560", "guidance.recon_std_rescale": "0.5"}
    one, other = (compare.Trial("cds", same | {"guidance.scale": scale}) for scale in ("[5, 5]", "[1, 1]"))
    assert one.folder(tmp_path) != other.folder(tmp_path)
    assert one.folder(tmp_path).parent == compare.Trial("cds").folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sds\nnone", "trials.txt, line 2: The loss 'none' does not exist"),
        ("sds scale", "trials.txt, line 1: write the loss"),
        ("sds =3", "line 1: write the loss"),
        ("\nsds colour=3", "line 2: .*colour"),
        ("sds 'scale=3", "line 1: No closing quotation"),
        ("# nothing\n", "trials.txt has no trials"),
    ],
)
def test_a_line_that_is_no_trial_is_named(text, says):
    with pytest.raises(UserError, match=says):
        compare.parse_trials(text, "trials.txt")


def test_the_truth_is_seen_right_from_every_side(gallery):
    figures = measure_object(gallery, "a blue duck", true_pictures("a blue duck"))
    assert figures["right_kind_and_color"] == 1.0 and figures["fronts_at_degrees"] == [0]
    found = [view["named_azimuth_degrees"] for view in figures["views"]]
    np.testing.assert_allclose((np.arange(8) * 45 - found + 180) % 360 - 180, 0, atol=0.1)


def test_a_trial_is_judged_by_an_object_of_each_prompt(tmp_path, gallery):
    splats = make_gaussians(
        np.zeros((1, 3)), np.asarray([[1.0, 0.0, 0.0]]), np.full((1, 3), 0.2), np.asarray([0.9]), capacity=1
    )
    asked = []

    def make(prompt, **how):
        asked.append((prompt, how))
        return splats, 10.0 * len(asked)

    trial = compare.Trial("sds", {"guidance.scale": "3", "iterations": "7"})
    prompts = ("a red mushroom", "a blue duck")
    figures, sides = compare.run_trial(trial, prompts, seed=5, folder=tmp_path, gallery=gallery, make=make)
    assert [prompt for prompt, _ in asked] == list(prompts)
    places = {how.pop("folder") for _, how in asked}
    assert len(places) == 1 and places.pop().parent == tmp_path
    wanted = {"guidance": "sds", "overrides": trial.overrides}
    assert [how for _, how in asked] == [{"seed": 5} | wanted, {"seed": 6} | wanted]
    assert sides.shape == (8, 96, 96, 3) and (figures["iterations"], figures["mean_seconds"]) == (7, 15.0)

    seen = object_pictures(splats)
    for one, prompt in zip(figures["list"], prompts, strict=True):
        error = np.mean((seen - true_pictures(prompt)) ** 2)
        assert 10 ** (-one["true_view_psnr"] / 10) == pytest.approx(error, rel=2e-3)
    mean = np.mean([one["true_view_psnr"] for one in figures["list"]])
    assert figures["true_view_psnr"] == pytest.approx(mean, abs=0.01)

    (line,) = compare.markdown_table([figures]).splitlines()[2:]
    assert line.startswith("| `sds guidance.scale=3 iterations=7` | ") and "| 0 of 1 |" in line
    first, second = csv.DictReader(io.StringIO(compare.csv_table([figures])))
    assert first["prompt"] == "a red mushroom" and (first["one_front"], second["one_front"]) == ("", "False")
    assert float(first["true_view_psnr"]) == figures["list"][0]["true_view_psnr"]
    sheet = compare.picture([figures, figures], [sides, sides])
    assert sheet.shape[1] >= 8 * 96 and sheet.shape[0] >= 2 * 96


def test_a_trial_of_nothing_else_shares_the_evaluation_s_objects(tmp_path, gallery):
    def make(prompt, *, folder, **_):
        assert folder == tmp_path
        return make_gaussians(
            np.zeros((1, 3)), np.ones((1, 3)), np.ones((1, 3)), np.ones(1) / 2, capacity=1
        ), 1

    compare.run_trial(
        compare.Trial("ge3d"), ("a red mushroom",), seed=0, folder=tmp_path, gallery=gallery, make=make
    )
