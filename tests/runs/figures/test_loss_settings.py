"""The effects of flags on the figures that compare losses, and the reasons to reject them."""

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.figures.base import Work
from ge3d_jax.runs.figures.loss_settings import EQUAL_TIMES, OWN_LENGTHS, Flags, counted_objects
from ge3d_jax.runs.trials import Trial
from tests.runs.figures.tiny_losses import PROMPTS, SDS, done_by_hand, tiny_settings


def test_flags_take_the_place_of_settings(tmp_path):
    (tmp_path / "prompts.txt").write_text("a green lamp\n a pink cat\n")
    (tmp_path / "trials.txt").write_text("ism\nsds guidance.scale=20\n")
    settings = tiny_settings(own_length=1)
    assert Flags().applied(settings, None) == settings
    changed = Flags(
        trials=tmp_path / "trials.txt",
        prompts=tmp_path / "prompts.txt",
        seeds=[3, 5],
        seconds=7.0,
        metrics=["psnr", " ssim"],
        clip="openai/clip-vit-base-patch32",
        inception="inception.pth",
        processes=2,
    ).applied(settings, None)
    assert changed.trials == (Trial("ism"), Trial("sds", {"guidance.scale": "20"}))
    assert (changed.prompts, changed.seeds) == (("a green lamp", "a pink cat"), (3, 5))
    assert (changed.budget, changed.metrics, changed.processes) == (7.0, ("psnr", "ssim"), 2)
    assert changed.clip == "openai/clip-vit-base-patch32" and settings.clip is None
    assert changed.inception == "inception.pth" and settings.inception is None
    assert changed.own_length == 1 and changed.preset == settings.preset
    assert Flags(losses=["ism", "vsd", "ism"]).applied(settings, None).trials == (Trial("ism"), Trial("vsd"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a red duck\n\na red cat", r"prompts.txt, line 2: there is no prompt"),
        ("a red duck\na red dragon", r"prompts.txt, line 2: .*dragon"),
        ("a red mushroom with a blue stem", r"line 1: .*second color"),
        ("a red duck\na red duck", r"line 2: 'a red duck' is there twice"),
        ("a red duck\tviews=2", r"line 1: there is a setting after the prompt"),
        ("", r"prompts.txt is empty"),
    ],
)
def test_a_line_of_prompts_that_cannot_be_is_named(tmp_path, text, says):
    file = tmp_path / "prompts.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        Flags(prompts=file).applied(tiny_settings(), None)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"losses": ["sds", "none"]}, "The loss 'none' does not exist; use one of ge3d, "),
        ({"losses": []}, "--losses names no loss"),
        ({"metrics": ["psnr", "beauty"]}, "no metric 'beauty'; use some of views_right"),
        ({"metrics": []}, "--metrics names no metric"),
        ({"losses": ["sds"], "trials": "trials.txt"}, "--losses and --trials both say"),
    ],
)
def test_names_that_do_not_exist_are_refused(flags, says):
    with pytest.raises(UserError, match=says):
        Flags(**flags).applied(tiny_settings(), None)


def test_series_are_one_for_each_loss_and_part(tmp_path):
    settings = tiny_settings(trials=(SDS, Trial("ism")), own_length=1, shares=(0.5,))
    parts = settings.series(Work("small", tmp_path))
    assert list(parts) == [EQUAL_TIMES, OWN_LENGTHS]
    timed, own = parts[EQUAL_TIMES], parts[OWN_LENGTHS]
    assert [one.trial for one in timed] == [one.trial for one in own] == [SDS, Trial("ism")]
    assert {one.budget for one in timed} == {0.2} and {one.budget for one in own} == {None}
    assert timed[1].objects == [(prompt, seed) for prompt in PROMPTS for seed in (0, 1)]
    assert own[1].objects == [(PROMPTS[0], 0)]
    assert len({one.folder for one in (*timed, *own)}) == 4
    assert all(one.shares == (0.5,) and one.processes == 1 and len(one.weights) == 8 for one in timed)
    assert list(tiny_settings().series(Work("small", tmp_path))) == [EQUAL_TIMES]


def test_objects_are_counted_over_all_losses():
    settings = tiny_settings(trials=(SDS, Trial("ism")), seeds=(0,))
    done = done_by_hand("sds", (1,), [{}], prompts=PROMPTS)
    assert counted_objects(settings, [done]) == "2 of 4 objects so far"
    assert counted_objects(settings, [done, done]) == "4 objects"


def test_a_model_may_be_another_than_the_preset_s(tmp_path):
    def model(asked):
        return tiny_settings().series(Work("small", tmp_path, asked))[EQUAL_TIMES][0].asked.model.model

    assert (model(None), model("toybox")) == ("toybox64", "toybox")
