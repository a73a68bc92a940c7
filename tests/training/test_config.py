"""Settings: presets, overrides, JSON, and mistakes that are named."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import ge3d_jax
from ge3d_jax.core.errors import UserError
from ge3d_jax.training import config as module
from ge3d_jax.training.config import PRESETS, from_json, setting_names, to_json, with_overrides


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    config = PRESETS[name]
    assert from_json(to_json(config)) == config
    assert hash(config) == hash(from_json(to_json(config)))


def test_the_published_settings():
    paper = PRESETS["paper"]
    assert (paper.iterations, paper.views, paper.image_size) == (3000, 4, 512)
    assert (paper.nodes.jump_max, paper.nodes.jump_min, paper.nodes.max_step) == (
        (80, 50),
        (60, 30),
        (480, 300),
    )
    assert paper.guidance.negative_prompt.startswith("unrealistic, blurry")


def test_overrides_of_every_kind():
    config = with_overrides(
        PRESETS["toybox"],
        {
            "iterations": "30",
            "guidance.use_perp_neg": "false",
            "guidance.negative_prompt": "7",
            "cameras.radius_begin": "[3, 4.5]",
            "start.scale": "null",
            "loss.residual": 1,
            "nodes.max_step": [700, 400],
        },
    )
    assert config.iterations == 30 and config.guidance.use_perp_neg is False
    assert config.guidance.negative_prompt == "7" and config.cameras.radius_begin == (3.0, 4.5)
    assert config.start.scale is None and config.loss.residual == 1.0
    assert config.nodes.max_step == (700, 400)
    assert PRESETS["toybox"].iterations != 30


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("guidance.scael", 3, r"guidance\.scael.*guidance\.scale"),
        ("jump_max", [1, 2], r"nodes\.jump_max"),
        ("nodes", {"count": 3}, "nodes"),
        ("zzz.qqq", 1, "does not exist"),
        ("iterations", 2.5, "whole number"),
        ("iterations", True, "whole number"),
        ("iterations", "many", "cannot be read"),
        ("iterations", 0, "at least 1"),
        ("guidance.scale", "Infinity", "a number"),
        ("guidance.noising_prompt", "positive", "negative, empty"),
        ("cameras.radius_begin", [1], "2 numbers"),
        ("cameras.radius_begin", [0, 1], "above 0"),
        ("nodes.jump_min", [900, 1], "jump_max"),
        ("nodes.max_step", [10, 10], "max_step"),
        ("views_per_batch", 3, "does not divide views"),
        ("views_per_batch", 0, "views_per_batch is 0"),
        ("attention_chunk", 0, "attention_chunk"),
        ("optimizer.color", [0, 1], "optimizer.color"),
        ("splat_capacity", 3, "splat_capacity"),
        ("guidance.dbc_width", 0, "dbc_width is 0"),
        ("cameras.fov_radians_end", [0, 0.5], "fov_radians_end"),
    ],
)
def test_a_mistake_is_named(name, value, message):
    with pytest.raises(UserError, match=message):
        with_overrides(PRESETS["toybox"], {name: value})


def test_a_file_with_a_strange_or_missing_setting_is_refused():
    tree = json.loads(to_json(PRESETS["toybox"]))
    tree["nodes"]["cuont"] = 3
    with pytest.raises(UserError, match="nodes.count"):
        from_json(json.dumps(tree))
    tree = json.loads(to_json(PRESETS["toybox"]))
    del tree["nodes"]["count"]
    with pytest.raises(UserError, match="lacks the setting nodes.count"):
        from_json(json.dumps(tree))
    for text in ("{", "[]"):
        with pytest.raises(UserError, match="JSON"):
            from_json(text)


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(UserError, match="paper, toybox"):
        module.preset("big")


def test_every_setting_is_read_somewhere():
    package = Path(ge3d_jax.__file__).parent
    source = "\n".join(
        path.read_text()
        for path in package.rglob("*.py")
        if path.name != "config.py" or "training" not in path.parts
    )
    methods = (package / "training" / "config.py").read_text().split("class DensityConfig")[1]
    for name in setting_names(PRESETS["paper"]):
        leaf = name.rsplit(".", 1)[-1]
        if name.startswith("optimizer.") and leaf not in ("epsilon", "higher_bands"):
            # Read by name, through the table of fields.
            assert f'"{leaf}"' in source, name
        else:
            assert re.search(rf"\.{leaf}\b", source) or f"self.{leaf}" in methods, name


def test_density_control_keeps_its_schedule():
    density = PRESETS["paper"].density
    assert [k for k in range(3001) if density.densifies_at(k)] == list(range(200, 2901, 100))
    assert [k for k in range(1000) if density.resets_at(k)][:3] == [300, 600, 900] or density.resets_at(300)
    assert not density.prunes_large_at(300) and density.prunes_large_at(400)
    never = dataclasses.replace(density, every=0, reset_every=0)
    assert not any(
        never.densifies_at(k) or never.resets_at(k) or never.prunes_large_at(k) for k in range(600)
    )
