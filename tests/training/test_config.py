"""Settings of a run: their names, errors for mistakes, and the use of each setting."""

import dataclasses
import re
from pathlib import Path

import pytest

import ge3d_jax
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import setting_names, with_overrides
from ge3d_jax.guidance.base import Loss
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.scenes.density import STRATEGIES
from ge3d_jax.training.fit_config import FitConfig
from ge3d_jax.training.presets import PRESETS, configured


def test_settings_have_long_and_short_names():
    config = with_overrides(
        PRESETS["toybox"],
        {
            "iterations": "30",
            "prompts.use_perp_neg": "false",
            "negative_prompt": "7",
            "cameras.radius_begin": "[3, 4.5]",
            "start.scale": "null",
            "guidance.strength": 1,
            "nodes.max_step": [700, 400],
            "learning_rates.color": [1, 2],
        },
    )
    assert config.iterations == 30 and config.prompts.use_perp_neg is False
    assert config.prompts.negative_prompt == "7" and config.cameras.radius_begin == (3.0, 4.5)
    assert config.scene.start.scale is None and config.guidance.strength == 1.0
    assert config.guidance.nodes.max_step == (700, 400) and config.scene.learning_rates.color == (1.0, 2.0)
    assert PRESETS["toybox"].iterations != 30


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("guidance.scael", 3, r"guidance\.scael.*guidance\.scale"),
        ("nodes", {"count": 3}, "nodes"),
        ("scale", 3, "could be guidance.scale or"),
        ("guidance.kind", "magic", "use one of ge3d"),
        ("iterations", 0, "at least 1"),
        ("guidance.noising_prompt", "positive", "negative, empty"),
        ("cameras.radius_begin", [0, 1], "above 0"),
        ("cameras.widen_every", 0, "widen_every is 0"),
        ("nodes.jump_min", [900, 1], "jump_max"),
        ("nodes.max_step", [10, 10], "max_step"),
        ("nodes.count", 0, "nodes.count is 0"),
        ("views_per_batch", 3, "does not divide views"),
        ("views_per_batch", 0, "views_per_batch is 0"),
        ("attention_chunk", 0, "attention_chunk"),
        ("learning_rates.color", [0, 1], "learning_rates.color"),
        ("scene.capacity", 3, "capacity is 3"),
        ("scene.rasterizer", "fast", "'fast' does not exist; use one of auto, xla, kernel"),
        ("scene.dilation", 0, "scene.dilation is 0"),
        ("start.count", 0, "start.count is 0"),
        ("start.opacity", 1, "start.opacity is 1"),
        ("start.sh_degree", 4, "start.sh_degree is 4"),
        ("density.every", -1, "density.every is -1"),
        ("guidance.dbc_width", 0, "dbc_width is 0"),
        ("perp_neg_weight", 0.5, "perp_neg_weight is 0.5"),
        ("cameras.fov_radians_end", [0, 0.5], "fov_radians_end"),
        ("cameras.fov_radians_begin", [0.5, 3.2], "fov_radians_begin"),
        ("first_seed", -1, "first_seed is -1; give a whole number from 0 to 4294967295"),
        ("first_seed", 2**32, "first_seed is 4294967296"),
        ("first_seed_share", 1.01, "first_seed_share is 1.01"),
        ("first_seed_share", -0.1, "first_seed_share is -0.1"),
    ],
)
def test_a_mistake_is_named(name, value, message):
    with pytest.raises(UserError, match=message):
        with_overrides(PRESETS["toybox_ball"], {name: value})


@dataclasses.dataclass(frozen=True)
class _InPairs(Loss):
    """A loss that compares pairs of views, which must not be mirrored."""

    views_together = 2
    may_mirror = False


def test_only_a_loss_that_says_what_it_wants_draws_pictures():
    assert PRESETS["toybox"].guidance.steps_to_target == pytest.approx(10.0)
    other = with_overrides(PRESETS["toybox"], {"guidance.strength": 0.2, "guidance.dbc": False})
    assert other.guidance.steps_to_target == pytest.approx(1 / (0.2 * 3))
    assert GE3D(strength=0.0).steps_to_target is None
    for name in LOSSES:
        chosen = configured("toybox", guidance=name)
        # The residual of x0 is just λ times the difference to the end of the path.
        says = {"ge3d": 10.0, "x0": 10.0}.get(name)
        assert chosen.guidance.steps_to_target == says and (chosen.picture_weight > 0) == (says is not None)
    with pytest.raises(UserError, match="picture_weight is 0.1"):
        with_overrides(PRESETS["toybox"], {"guidance.kind": "sds"})
    assert configured("toybox", overrides={"guidance.kind": "sds"}).picture_weight == 0
    with pytest.raises(UserError, match="picture_weight is 0.2"):
        configured("toybox", overrides={"guidance.kind": "sds", "picture_weight": 0.2})


def test_a_loss_has_its_say_in_views_and_mirrors():
    plain = dataclasses.replace(PRESETS["toybox64"], flip_probability=0.0)
    assert dataclasses.replace(plain, guidance=_InPairs()).views == 4
    with pytest.raises(UserError, match="flip_probability is 0.5"):
        dataclasses.replace(PRESETS["toybox64"], guidance=_InPairs())
    with pytest.raises(UserError, match="views is 3.*multiple of 2"):
        dataclasses.replace(plain, guidance=_InPairs(), views=3)
    with pytest.raises(UserError, match="views_per_batch is 1.*multiple of 2"):
        dataclasses.replace(plain, guidance=_InPairs(), views_per_batch=1)


def test_every_setting_is_read_somewhere():
    package = Path(ge3d_jax.__file__).parent
    source = "\n".join(path.read_text() for path in package.rglob("*.py"))
    configs = [PRESETS["paper"], FitConfig(), *(configured("paper", guidance=name) for name in LOSSES)]
    configs += [configured("paper", density=name) for name in STRATEGIES]
    for name in {name for config in configs for name in setting_names(config)}:
        leaf = name.rsplit(".", 1)[-1]
        if re.search(r"\.(learning_)?rates\.", name) and leaf != "higher_bands":
            # These are read by name, through the table of fields.
            assert f'"{leaf}"' in source, name
        elif leaf != "kind":
            assert re.search(rf"(config|self|density|cameras|nodes|\w)\.{leaf}\b", source), name
