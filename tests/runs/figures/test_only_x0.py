"""Figure 11: the arms differ only in the loss, and the picture has two views of each object."""

import dataclasses

import pytest

from ge3d_jax.guidance.x0 import X0
from ge3d_jax.runs.figures.only_x0 import GE3D, ONLY_X0, OWN, SIZES, arms, draw, only_the_end
from ge3d_jax.training.presets import configured
from tests.runs.figures.tiny_sweep import grays_of, numbered, tiny_plan


def settings_of(arm, plan):
    return configured(plan.preset, guidance=arm.guidance, overrides={**plan.overrides, **arm.overrides})


@pytest.mark.parametrize("preset", ["toybox", "paper/lantern"])
def test_the_end_of_the_path_has_all_of_ge3ds_settings(preset):
    changes = {"guidance.offset_noise": 0.2, "guidance.strength": 0.05, "guidance.noising_prompt": "empty"}
    usual = configured(preset, overrides=changes)
    end = configured(preset, overrides={**changes, **only_the_end(usual)})
    assert isinstance(end.guidance, X0)
    for field in dataclasses.fields(X0):
        assert getattr(end.guidance, field.name) == getattr(usual.guidance, field.name), field.name
    assert dataclasses.replace(end, guidance=usual.guidance) == usual


@pytest.mark.parametrize("size", SIZES)
def test_the_settings_of_every_size_can_be(size):
    settings = SIZES[size]
    plan, made = settings.plan, arms(settings)
    assert [arm.name for arm in made] == [GE3D, ONLY_X0, OWN][: 3 if size == "full" else 2]
    ge3d, end, *own = [settings_of(arm, plan) for arm in made]
    assert ge3d == configured(plan.preset, overrides=plan.overrides)
    assert isinstance(end.guidance, X0) and end.guidance.nodes == ge3d.guidance.nodes
    for config in own:
        assert config.guidance == configured(plan.preset, guidance="x0").guidance != end.guidance
    assert plan.is_known == (size != "paper")


def test_the_picture_has_a_row_for_each_prompt_and_two_views_by_loss():
    plan = tiny_plan(prompts=("a", "b"))
    swept = {
        name: numbered(first, prompts=2, seeds=2) for name, first in ((GE3D, 50), (ONLY_X0, 100), (OWN, 150))
    }
    assert grays_of(draw(plan, swept), 6) == [[50, 51, 100, 101, 150, 151], [60, 61, 110, 111, 160, 161]]
