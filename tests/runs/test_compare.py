"""Losses side by side: the file of trials, what a trial makes, and the tables."""

import csv
import io

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.metrics.recognition import build_gallery
from ge3d_jax.runs import compare
from ge3d_jax.runs.evaluate import measure_object, true_pictures
from tests.runs.test_evaluate import SMALL
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def gallery():
    return build_gallery(("duck", "mushroom"), azimuths=8, polar_degrees=(70.0,))


def test_a_line_is_a_loss_with_its_settings():
    text = "# first\nsds\n\ncds 'scale=(10, 5)' iterations=20  # brighter\n"
    plain, changed = compare.parse_trials(text, "trials.txt")
    assert (plain.guidance, plain.overrides, plain.changes) == ("sds", {}, "")
    assert (changed.guidance, changed.overrides) == ("cds", {"scale": "(10, 5)", "iterations": "20"})
    assert changed.changes == "scale=(10, 5) iterations=20"


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


def test_a_trial_makes_an_object_of_each_prompt_in_a_folder_of_its_own(tmp_path, gallery):
    write_tiny_model(tmp_path / "model")
    changes = {name: str(value) for name, value in SMALL.items()}
    figures, sides = compare.run_trial(
        compare.Trial("ge3d", changes),
        ("a red mushroom", "a blue duck"),
        seed=5,
        folder=tmp_path,
        gallery=gallery,
        model=str(tmp_path / "model"),
    )
    assert sides.shape == (8, 128, 128, 3)
    made = sorted(path.parent.name for path in tmp_path.glob("iterations-3-*/ge3d/*/object.ply"))
    assert made == ["a-blue-duck-6", "a-red-mushroom-5"]
    assert figures["iterations"] == 3 and [one["one_front"] for one in figures["list"]][0] is None
    # What three iterations of random weights leave on white is far from a mushroom, but mostly white as well.
    assert 2 < figures["true_view_psnr"] < 25
    mean = np.mean([one["true_view_psnr"] for one in figures["list"]])
    assert figures["true_view_psnr"] == pytest.approx(mean, abs=0.01)

    (line,) = compare.markdown_table([figures]).splitlines()[2:]
    assert line.startswith("| `ge3d iterations=3 ") and "of 1 |" in line
    first, second = csv.DictReader(io.StringIO(compare.csv_table([figures])))
    assert first["prompt"] == "a red mushroom" and second["one_front"] in ("True", "False")
    assert float(first["true_view_psnr"]) == figures["list"][0]["true_view_psnr"]
    sheet = compare.picture([figures, figures], [sides, sides])
    assert sheet.shape[1] >= 8 * 128 and sheet.shape[0] >= 2 * 128
