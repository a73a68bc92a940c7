"""The evaluation's prompts, resuming, and the page and pictures made from the results."""

import json
from collections import Counter

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.metrics.recognition import build_gallery
from ge3d_jax.runs import evaluate as evaluation
from ge3d_jax.runs import evaluation_report as report
from ge3d_jax.runs import made_objects
from ge3d_jax.runs.evaluation_prompts import PROMPTS, check_prompts, hidden_prompts
from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.toybox.world.captions import caption, parse
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from tests.tiny_model import SMALL, write_tiny_model


def test_prompts_are_spread_over_the_world():
    sentences = [parse(prompt) for prompt in PROMPTS]
    assert len(sentences) == len(set(sentences)) == 24
    assert [caption(sentence) for sentence in sentences] == list(PROMPTS)
    kinds = Counter(sentence.kind for sentence in sentences)
    assert set(kinds) == set(KINDS)
    assert sum(kinds[kind] for kind, thing in KINDS.items() if thing.has_front) == 18
    assert Counter(sentence.color for sentence in sentences) == dict.fromkeys(COLORS, 2)
    check_prompts(PROMPTS)


def test_hidden_prompts_are_others_and_follow_the_seed():
    prompts = hidden_prompts(5)
    assert prompts == hidden_prompts(5) != hidden_prompts(6)
    assert len(set(prompts)) == 48 and not set(prompts) & set(PROMPTS)
    assert Counter(parse(prompt).kind for prompt in prompts) == dict.fromkeys(KINDS, 3)
    check_prompts(prompts)


@pytest.mark.parametrize(
    ("prompt", "says"), [("a red mushroom with a blue stem", "second color"), ("a dragon", "not a sentence")]
)
def test_prompts_that_cannot_be_judged_are_refused(prompt, says):
    with pytest.raises(UserError, match=says):
        check_prompts(["a red mushroom", prompt])


def test_the_truth_is_seen_right_from_every_side():
    gallery = build_gallery(("duck", "mushroom"), azimuths=8, polar_degrees=(70.0,))
    figures = evaluation.measure_object(gallery, "a blue duck", evaluation.true_pictures("a blue duck"))
    assert figures["right_kind_and_color"] == 1.0 and figures["fronts_at_degrees"] == [0]
    found = [view["named_azimuth_degrees"] for view in figures["views"]]
    np.testing.assert_allclose((np.arange(8) * 45 - found + 180) % 360 - 180, 0, atol=0.1)


class Generated(Exception):
    pass


def test_finished_objects_are_loaded_and_others_are_generated(tmp_path, monkeypatch):
    model = tmp_path / "model"
    write_tiny_model(model)

    def make(seed=0, **changes):
        return made_objects.make_object(
            "a red mushroom",
            seed=seed,
            folder=tmp_path / "objects",
            model=str(model),
            overrides=SMALL | changes,
        )

    def refuse(*_, **__):
        raise Generated

    first, seconds = make()
    monkeypatch.setattr(made_objects, "generate", refuse)
    again, same_seconds = make()
    assert seconds == same_seconds > 0
    np.testing.assert_array_equal(first.positions, again.positions)
    # A run from before a setting existed counts if the preset's value matches the former behavior.
    config = tmp_path / "objects" / "ge3d" / "a-red-mushroom-0" / "config.json"
    whole = json.loads(config.read_text())
    older = whole | {"settings": {n: v for n, v in whole["settings"].items() if n != "shared_nodes"}}
    config.write_text(json.dumps(older))
    assert make()[1] == seconds
    # Different settings or seeds mean different objects; a run that was stopped early does not count.
    for changes in ({"guidance.scale": 5.0}, {"seed": 1}):
        with pytest.raises(Generated):
            make(**changes)
    metrics = tmp_path / "objects" / "ge3d" / "a-red-mushroom-0" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(Generated):
        make()


class Weak(GE3D):
    presets = {"toybox": {"guidance.strength": 0.01}}


def test_a_loss_has_its_own_settings_and_folder(tmp_path, monkeypatch):
    asked = {}

    def note(prompt, **how):
        asked.update(how)
        raise Generated

    monkeypatch.setitem(LOSSES, "weak", Weak)
    monkeypatch.setattr(made_objects, "generate", note)
    with pytest.raises(Generated):
        made_objects.make_object("a red mushroom", seed=0, folder=tmp_path, guidance="weak")
    assert asked["guidance"] == "weak" and asked["out"] == tmp_path / "weak" / "a-red-mushroom-0"
    assert made_objects.loss_name() == "ge3d"
    assert made_objects.loss_name(overrides={"guidance.kind": "weak"}) == "weak"
    with pytest.raises(UserError, match="use one of ge3d"):
        made_objects.loss_name("none")
    with pytest.raises(Generated):
        made_objects.make_object("a red mushroom", seed=0, folder=tmp_path, preset="toybox64")
    assert asked["preset"] == "toybox64"


def test_fingerprint_follows_the_weights(tmp_path):
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "model.safetensors"
    weights.write_bytes(b"one")
    before = made_objects.model_fingerprint(tmp_path)
    assert before == made_objects.model_fingerprint(tmp_path)
    weights.write_bytes(b"two")
    assert before != made_objects.model_fingerprint(tmp_path)


def some_reports():
    view = {
        "azimuth_degrees": 0,
        "named_kind": "pig",
        "named_color": "red",
        "named_azimuth_degrees": 0,
        "squared_error": 0.01,
    }
    shares = {"right_kind": 0.9375, "right_color": 1.0, "right_kind_and_color": 0.5}
    likeness = {
        "psnr": 19.25,
        "overlap": 0.834,
        "sharpness": 0.182,
        "tint": None,
        "chamfer": 0.0312,
        "specks": 0.0123,
    }
    duck = {
        "prompt": "a red duck",
        "one_front": False,
        "fronts_at_degrees": [0, 180],
        "seconds": 61.2,
        "likeness": likeness,
        "views": [view | {"azimuth_degrees": 45 * index} for index in range(8)],
        **shares,
    }
    sample = {
        "prompt": "a red duck",
        "named_kind": "pig",
        "named_color": "red",
        "right_kind": False,
        "right_color": True,
        "squared_error": 0.02,
    }
    return {
        "recognizer": {
            "pictures": 576,
            "cameras_per_kind_and_color": 3,
            "azimuth_error_degrees": {"pictures": 300, "median": 3.5, "percentile_95": 7.4, "largest": 20.0},
            "turned": [{"prompt": "a black cat", "azimuth_degrees": 7, "named_azimuth_degrees": 180}],
            "right_front_decision": 0.9,
            **shares,
        },
        "model": {
            "pictures": 1,
            "seed": 0,
            "likeness": {"psnr": 22.41, "sharpness": 0.9, "tint": 0.015},
            "samples": [sample],
            **shares,
        },
        "objects": {
            "objects": 1,
            "objects_with_front": 1,
            "one_front": 0.0,
            "multi_faced": 0.25,
            "likeness": likeness,
            "mean_seconds": 61.2,
            "seed": 0,
            "machine": "2 processor cores",
            "preset": "toybox64",
            "guidance": "sds",
            "overrides": {"views": "2"},
            "list": [duck, duck | {"one_front": None, "fronts_at_degrees": []}],
            **shares,
        },
    }


def test_page_shows_the_available_figures():
    reports = some_reports()
    page = report.markdown(reports)
    for words in (
        "93.8%",
        "576 ground-truth",
        "a red duck as red pig",
        "0°, 180°",
        "a black cat at 7° (180°)",
        "made with the preset `toybox64` and the loss `sds`",
        "`views=2`",
        "61 s",
        "Several fronts: **25.0%**",
        "| the samples | 22.4 dB | – | 0.90 | 1.5% | – | – |",
        "| the objects | 19.2 dB | 0.83 | 0.18 | – | 3.1% | 1.2% |",
        "| a red duck | 50.0% | no | 0°, 180° | 19.2 dB | 0.83 | 0.18 | – | 3.1% | 1.2% | 61 |",
    ):
        assert words in page
    assert "of `toybox64`" not in page.split("## The recognizer")[0]
    other = {"objects": reports["objects"] | {"likeness": {"psnr": 17.0}}}
    beside = report.markdown(reports, {"toybox64": other})
    assert "| the objects | 19.2 dB | 0.83 | 0.18 | – | 3.1% | 1.2% |" in beside
    assert "| the objects of `toybox64` | 17.0 dB | – | – | – | – | – |" in beside
    assert "| goal for the objects | 22.0 dB | 0.92 | 0.50 | – | 3.0% | 1.0% |" in beside
    part = report.markdown({"model": reports["model"]})
    assert "## The model" in part and "## The objects" not in part


def test_pictures_of_the_report():
    reports = some_reports()
    matrix = report.draw_confusion([[3, 1, 0], [0, 4, 0], [0, 0, 0]], ["cat", "television", "pig"])
    assert matrix.dtype == np.uint8 and matrix.shape[0] == matrix.shape[1] > 100
    sheet = report.sample_sheet(reports["model"], np.zeros((1, 64, 64, 3)))
    assert sheet.shape[0] > 128
    splats = make_gaussians(
        np.zeros((1, 3)), np.full((1, 3), 0.5), np.full((1, 3), 0.1), np.asarray([0.9]), capacity=1
    )
    sides = report.object_sides(splats)
    assert sides.shape == (4, 128, 128, 3) and sides[0, 64, 64].max() < 200 and sides[0, 0, 0].min() == 255
    sheet = report.object_sheet(reports["objects"]["list"], [sides, sides])
    assert sheet.shape[1] > 8 * 128
