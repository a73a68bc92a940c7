"""Requests for runs: from presets with prompts, and from the config.json of earlier runs."""

import json
import warnings

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import to_tree
from ge3d_jax.runs.asked import asked_by_file, asked_by_preset, bundled_model
from ge3d_jax.runs.model_choice import ModelChoice
from ge3d_jax.training.presets import configured, preset


def _preset(name):
    return asked_by_preset(name, guidance=None, density=None, overrides={"views": 2})


def _saved(folder, *, config=None, **changes):
    run = {
        "prompt": "a red mushroom",
        "seed": 3,
        "preset": "toybox",
        "model": "toybox",
        "start": "object.ply",
        "dtype": "float32",
        "loras": [["style.safetensors", 0.8]],
        "textual_inversions": ["cat.safetensors"],
        "settings": to_tree(config or preset("toybox")),
    }
    file = folder / "config.json"
    file.write_text(json.dumps(run | changes))
    return file


def _without(tree, name):
    """The tree without the setting or section of this dotted name."""
    section, _, rest = name.partition(".")
    if not rest:
        return {key: value for key, value in tree.items() if key != section}
    return tree | {section: _without(tree[section], rest)}


def test_a_preset_may_tell_prompt_and_seed():
    assert _preset(None).preset == "toybox"
    assert (_preset("paper").prompt, _preset("paper").seed) == (None, 0)
    widow = _preset("paper/black_widow_2")
    assert widow.prompt.startswith("Black Widow") and widow.seed == 1
    assert (widow.settings.views, widow.usual.views) == (2, 4)
    given = widow.but(prompt="a cat", seed=0, model=None)
    assert (given.prompt, given.seed, given.model) == ("a cat", 0, ModelChoice())
    assert widow.but(dtype="float32").model == ModelChoice(dtype="float32")


def test_a_preset_names_its_bundled_model():
    names = {"toybox": "toybox", "toybox_ball": "toybox", "toybox64": "toybox64", "paper": None}
    assert {name: bundled_model(name) for name in names} == names
    assert {name: _preset(name).model.model for name in names} == names


@pytest.mark.parametrize("start", ["ball", "box"])
def test_a_run_with_another_start_than_its_preset_s_is_repeated(tmp_path, start):
    # Of the preset's 6000 splats; by its own defaults, a ball has 100,000.
    config = configured("toybox", start=start, overrides={"start.count": 50})
    asked = asked_by_file(_saved(tmp_path, config=config, start=start), overrides=None)
    assert asked.settings == config and asked.usual == configured("toybox", start=start)
    config = configured("toybox", overrides={"start.kind": start, "start.count": 50})
    assert asked_by_file(_saved(tmp_path, config=config, start=None), overrides=None).settings == config


@pytest.mark.parametrize("density", [None, "mcmc"])
def test_a_file_tells_everything(tmp_path, density):
    config = configured("toybox", density=density, overrides={"cameras.radius_end": (3, 4), "nodes.count": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = asked_by_file(_saved(tmp_path, config=config), overrides={"views": 2})
    assert asked.settings == configured(
        "toybox",
        density=density,
        overrides={"cameras.radius_end": (3, 4), "nodes.count": 3, "views": 2},
    )
    assert asked.usual == configured("toybox", density=density)
    assert (asked.prompt, asked.seed, asked.preset) == ("a red mushroom", 3, "toybox")
    assert asked.start == "object.ply"
    assert asked.model == ModelChoice(
        "toybox", "float32", (("style.safetensors", 0.8),), ("cat.safetensors",)
    )
    # Arguments given by the caller take precedence, even empty ones.
    assert asked.but(loras=(), seed=0).model.loras == ()
    assert asked.but(loras=None).model == asked.model
    assert asked_by_file(_saved(tmp_path, model="folder"), overrides=None).model.model == "folder"


@pytest.mark.parametrize(
    ("lacks", "told"),
    [
        ("views", "toybox' provides views = 4."),
        ("guidance.nodes.count", "provides guidance.nodes.count = 3."),
        ("scene.kind", "provides scene.kind = 'splats'."),
        ("background", "background.replaced = 0.5, background.random_share = 1.0."),
    ],
)
def test_a_setting_that_is_not_in_the_file_is_the_preset_s(tmp_path, lacks, told):
    file = _saved(tmp_path, settings=_without(to_tree(preset("toybox")), lacks))
    with pytest.warns(UserWarning, match=told):
        assert asked_by_file(file, overrides={}).settings == preset("toybox")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": to_tree(preset("toybox")) | {"vews": 3}}, "config.json: .*'vews'.*did you mean views"),
        ({"settings": to_tree(preset("toybox")) | {"views": "many"}}, "config.json: .*views is 'many'"),
        ({"settings": to_tree(preset("toybox")) | {"views": 0}}, "config.json: .*at least 1"),
        ({"settings": to_tree(preset("toybox")) | {"cameras": 3}}, "The section cameras is 3"),
        ({"settings": {"guidance": {"kind": "magic"}}}, "'magic' does not exist; use one of ge3d"),
        ({"settings": {"guidance": {"kind": ["ge3d"]}}}, "guidance.kind is .* use one of ge3d"),
        ({"settings": {"scene": {"kind": "magic"}}}, "scene.kind is 'magic'; use one of"),
        ({"settings": {"cameras": {"kind": "magic"}}}, "'cameras.kind' does not exist"),
        ({"preset": "fit"}, "config.json: The preset 'fit' does not exist"),
        ({"settings": [1]}, "does not describe a run"),
        ({"prompt": None}, "does not describe a run"),
        ({"seed": True}, "does not describe a run"),
        ({"model": 3}, "does not describe a run"),
        ({"loras": [["a", "b"]]}, "does not describe a run"),
        ({"textual_inversions": "cat.bin"}, "does not describe a run"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        asked_by_file(_saved(tmp_path, **changes), overrides={})


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "not readable JSON"), (b"\xff", "not readable JSON"), (b"[1]", "does not describe a run")],
)
def test_a_file_that_is_no_run_is_told(tmp_path, content, says):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=says):
        asked_by_file(tmp_path / "config.json", overrides={})
    with pytest.raises(UserError, match="cannot be read"):
        asked_by_file(tmp_path, overrides={})


@pytest.mark.parametrize(
    "place",
    [
        ("preset",),
        *(("settings", *name.split(".")) for name in ("guidance.kind", "guidance.inversion")),
        *(("settings", *name.split(".")) for name in ("scene.density.kind", "prompts.perp_neg_rule")),
    ],
    ids=".".join,
)
def test_a_word_as_long_as_a_file_is_not_repeated_in_full(tmp_path, place):
    file = _saved(tmp_path)
    run = json.loads(file.read_text())
    *sections, last = place
    section = run
    for name in sections:
        section = section[name]
    section[last] = "x" * 3000
    file.write_text(json.dumps(run))
    with pytest.raises(UserError) as refused:
        asked_by_file(file, overrides={})
    assert "'xxx" in str(refused.value) and "…" in str(refused.value)
    assert len(str(refused.value)) - len(str(file)) < 700
