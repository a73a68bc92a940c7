"""Presets: the published settings, changes by the public configurations, losses and strategies by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import from_tree, setting_names, to_tree
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.guidance.trajectories import sample_time_nodes
from ge3d_jax.scenes.splat_state import first_capacity
from ge3d_jax.training.presets import PRESETS, PUBLISHED, configured, preset, prompt_of, seed_of

WIDOW = "Black Widow in Marvel, head, photorealistic, 8K, HDR."
# By preset name: the prompt, and all settings that differ from the base preset.
EXPECTED: dict[str, tuple[str, dict[str, Any]]] = {
    "paper/lantern": (
        "A decorative lantern, red, warm lighting, 8K, HDR",
        {
            "scene.start.prompt": "A lantern.",
            "guidance.nodes.jump_max": (110, 80),
            "guidance.nodes.jump_min": (100, 70),
            "guidance.nodes.max_step": (700, 400),
            "scene.density.reset_every": 500,
        },
    ),
    "paper/giraffe": (
        "A giraffe with a scarf, cozy, realistic, 8K, HDR.",
        {"scene.start.prompt": "A giraffe."},
    ),
    "paper/radio": (
        "A vintage radio, wooden case, retro design, 8K, HDR",
        {
            "scene.start.prompt": "A radio.",
            "guidance.nodes.jump_max": (80, 60),
            "guidance.nodes.jump_min": (60, 50),
            "scene.density.reset_every": 500,
        },
    ),
    "paper/stuffed_bunny": (
        "a soft stuffed toy bunny with long ears and a pink nose.",
        {
            "scene.start.prompt": "A bunny.",
            "guidance.nodes.jump_max": (80, 60),
            "guidance.nodes.jump_min": (60, 45),
            "guidance.dbc": False,
        },
    ),
    "paper/swarovski_earrings": (
        "Swarovski crystal earrings, photorealistic, 8K, HDR.",
        {
            "scene.start.prompt": "A Swarovski crystal earrings.",
            "guidance.nodes.jump_max": (80, 60),
            "guidance.nodes.jump_min": (70, 50),
        },
    ),
    "paper/captain_america": (
        "Captain America, head, photorealistic, 8K, HDR.",
        {"scene.start.prompt": "a man head."},
    ),
    "paper/black_widow": (
        WIDOW,
        {"scene.start.prompt": "a woman head with hair.", "background.replaced": 0.3},
    ),
    "paper/black_widow_2": (
        WIDOW,
        {
            "scene.start.prompt": "a woman head with hair.",
            "iterations": 5000,
            "background.replaced": 0.3,
            "guidance.nodes.count": 8,
            "guidance.nodes.jump_max": (60, 50),
            "guidance.nodes.jump_min": (50, 40),
            "guidance.nodes.max_step": (450, 350),
            "guidance.dbc_width": 0.2,
        },
    ),
}


def _get(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _settings(config):
    """Settings by full name; kinds are the same in all presets."""
    names = [name for name in setting_names(config) if not name.endswith(".kind")]
    return {name: _get(config, name) for name in names}


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_a_file(name):
    config = PRESETS[name]
    again = from_tree(config, to_tree(config))
    assert again == config and hash(again) == hash(config)


def test_the_published_settings():
    paper = PRESETS["paper"]
    assert (paper.iterations, paper.views, paper.image_size) == (3000, 4, 512)
    nodes = paper.guidance.nodes
    assert (nodes.jump_max, nodes.jump_min, nodes.max_step) == ((80, 50), (60, 30), (480, 300))
    assert (nodes.count, paper.guidance.dbc, paper.guidance.scale) == (6, True, 7.5)
    assert paper.guidance.dbc_width * paper.iterations == 1000
    assert paper.prompts.use_perp_neg and paper.prompts.perp_neg_weight == -2
    assert paper.prompts.negative_prompt.startswith("unrealistic, blurry")
    cameras, background = paper.cameras, paper.background
    assert (cameras.jitter_center, cameras.jitter_target, cameras.jitter_up) == (0.025, 0.05, 0.01)
    assert (background.color, background.replaced, background.random_share) == ((1, 1, 1), 0.66, 0.5)
    density = paper.scene.density
    assert (density.first, density.last, density.every, density.reset_every) == (200, 2900, 100, 300)
    assert (prompt_of("paper"), seed_of("paper"), prompt_of("toybox")) == (None, 0, None)


def test_all_public_configurations_are_there():
    assert set(PUBLISHED) == set(EXPECTED) and set(PRESETS) == {
        "paper",
        "toybox",
        "toybox_ball",
        "toybox64",
        *EXPECTED,
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_a_public_configuration_differs_where_it_was_published_to(name):
    prompt, changes = EXPECTED[name]
    base, settings = _settings(PRESETS["paper"]), _settings(preset(name))
    differ = {setting: value for setting, value in settings.items() if value != base[setting]}
    assert settings.keys() == base.keys() and differ == changes
    assert prompt_of(name) == prompt
    assert seed_of(name) == (1 if name == "paper/black_widow_2" else 0)


def test_a_longer_published_run_keeps_the_width_and_the_end_of_density_control():
    config = preset("paper/black_widow_2")
    assert config.guidance.dbc_width * config.iterations == 1000
    assert config.scene.density.last == 2900


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("guidance", LOSSES)
def test_every_loss_has_settings_for_every_preset(name, guidance):
    config = configured(name, guidance=guidance)
    assert type(config.guidance) is LOSSES[guidance]
    assert from_tree(config, to_tree(config)) == config
    shorter = configured(name, guidance=guidance, overrides={"iterations": 7})
    assert shorter == dataclasses.replace(config, iterations=7)


@dataclasses.dataclass(frozen=True)
class _Other(GE3D):
    """A loss with its own settings for the published runs."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"guidance.scale": 100, "views": 8}}


def test_a_loss_goes_with_the_variants_of_a_preset_as_with_the_preset(monkeypatch):
    monkeypatch.setitem(LOSSES, "other", _Other)
    config = configured("paper/lantern", guidance="other")
    assert (config.guidance.scale, config.views, config.scene.density.reset_every) == (100, 8, 500)
    assert configured("toybox", guidance="other").guidance.scale == 7.5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"preset_name": "big"},
            "paper, toybox64, toybox_ball, toybox, paper/lantern, .*paper/black_widow_2",
        ),
        ({"preset_name": "toybox", "guidance": "magic"}, "'magic' does not exist; use one of ge3d"),
        ({"preset_name": "toybox", "density": "magic"}, "use one of clone_split, mcmc, relocate"),
    ],
)
def test_unknown_names_are_answered_with_those_there_are(asked, message):
    with pytest.raises(UserError, match=message):
        configured(**asked)


def test_a_run_of_the_bundled_model_makes_fewer_jumps_and_then_one_which_is_not_corrected():
    config = preset("toybox")
    guidance, end = config.guidance, config.iterations - 1
    assert guidance.inversion == "direct_if_several"

    def jumps(iteration):
        progress = Progress(jnp.int32(iteration), config.iterations)
        keys = jax.random.split(jax.random.key(0), 200)
        _, active = jax.vmap(lambda key: sample_time_nodes(key, progress, guidance.nodes))(keys)
        return set(np.asarray(active).tolist())

    assert [jumps(iteration) for iteration in (0, end // 2, end)] == [{3}, {2}, {1}]


def test_a_start_has_the_size_of_each_bundled_world():
    for name, (ball, box) in {"toybox_ball": (6000, 6000), "toybox64": (1600, 1600)}.items():
        assert PRESETS[name].scene.start == configured(name, start="ball").scene.start
        assert PRESETS[name].scene.start.count == ball
        assert configured(name, start="box").scene.start.count == box


def test_the_preset_of_the_bundled_model_starts_from_its_point_e_and_the_other_from_a_ball():
    points, ball = preset("toybox"), preset("toybox_ball")
    assert points.scene.start == configured("toybox_ball", start="point_e").scene.start
    assert points.scene.start.model == "bundled" and points.scene.start.prompt is None
    assert ball.scene.start == configured("toybox", start="ball").scene.start
    # The far side would show through a translucent shell of points.
    assert points.scene.start.opacity >= 0.75 and ball.scene.start.opacity < 0.5
    # Five copies of each of 1024 points.
    assert 5 * 1024 <= points.scene.capacity
    assert points.iterations < ball.iterations
    # All of density control happens before the run ends.
    assert points.scene.density.last < points.iterations


def test_the_first_buffer_of_the_demo_is_its_last():
    scene = PRESETS["toybox"].scene
    points = 1024
    length = first_capacity(points * scene.start.growth.number, scene.capacity)
    assert length == scene.capacity, "a longer buffer would have the iteration compiled again"
