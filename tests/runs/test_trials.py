"""Trials of losses: parsing and folder names."""

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.trials import Trial, parse_trials, read_trials


def test_a_line_is_a_loss_with_its_settings():
    text = "# first\nsds\n\ncds 'guidance.scale=[10, 5]' iterations=20  # brighter\n"
    plain, changed = parse_trials(text, "trials.txt", preset="toybox")
    assert (plain.guidance, plain.overrides, plain.label) == ("sds", {}, "sds")
    assert (changed.guidance, changed.overrides) == ("cds", {"guidance.scale": "[10, 5]", "iterations": "20"})
    assert changed.label == "cds guidance.scale=[10, 5] iterations=20"
    settings = changed.settings("toybox")
    assert (settings.guidance.scale, settings.iterations) == ((10.0, 5.0), 20)


def test_trials_that_differ_late_in_a_long_line_have_folders_of_their_own():
    same = {"iterations": "560", "guidance.anneal_iterations": "560", "guidance.recon_std_rescale": "0.5"}
    one, other = (Trial("cds", same | {"guidance.scale": scale}) for scale in ("[5, 5]", "[1, 1]"))
    assert one.folder_name != other.folder_name and one.folder_name.startswith("cds-iterations-560-")
    assert Trial("cds").folder_name == "cds"


def test_a_trial_may_begin_with_something_else():
    usual, box = Trial("sds"), Trial("sds", {"views": "2"}, start="box")
    assert (box.label, usual.label) == ("sds from box views=2", "sds")
    assert box.folder_name.startswith("sds-from-box-views-2-")
    assert box.folder_name != Trial("sds", {"views": "2"}).folder_name
    settings = box.settings("toybox")
    assert (type(settings.scene.start).__name__, settings.views) == ("Box", 2)
    assert type(usual.settings("toybox").scene.start).__name__ == "PointEStart"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sds\nnone", "trials.txt, line 2: The loss 'none' does not exist"),
        ("sds scale", "trials.txt, line 1: write the loss"),
        ("sds =3", "line 1: write the loss"),
        ("\nsds colour=3", "line 2: .*colour"),
        ("sds 'scale=3", "line 1: No closing quotation"),
        ("sds views=2\nism\nsds views=2", "line 3: 'sds views=2' is there twice"),
        ("# nothing\n", "trials.txt has no trials"),
    ],
)
def test_a_line_that_is_no_trial_is_named(text, says):
    with pytest.raises(UserError, match=says):
        parse_trials(text, "trials.txt", preset="toybox")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing\.txt cannot be read"):
        read_trials(tmp_path / "missing.txt", preset="toybox")
    (tmp_path / "trials.txt").write_text("ism")
    assert read_trials(tmp_path / "trials.txt", preset="toybox") == [Trial("ism")]
