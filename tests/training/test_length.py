"""Runs of a different length: everything tied to an iteration keeps its relative position in the run."""

import numpy as np
import pytest

from ge3d_jax.core.settings import setting_names, to_tree, with_overrides
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.training.cameras import camera_ranges
from ge3d_jax.training.length import lasting
from ge3d_jax.training.presets import configured

COUNTS = (
    *("anneal_iterations", "warm_up_iterations", "late_from", "widen_from", "widen_every"),
    *("first", "last", "every", "reset_every", "sh_every"),
)


def test_what_counts_iterations_keeps_its_share():
    config = with_overrides(
        configured("toybox", guidance="csd"),
        {"scene.density.first": 68, "scene.density.last": 340, "scene.density.every": 34, "sh_every": 200},
    )
    half = lasting(config, 340)
    assert (config.iterations, half.iterations) == (680, 340)
    assert half.guidance.anneal_iterations == half.guidance.times.late_from == 170
    density = half.scene.density
    assert (density.first, density.last, density.every, half.scene.sh_every) == (34, 170, 17, 100)
    assert (half.cameras.widen_from, half.cameras.widen_every) == (5, 2)
    assert lasting(config, 2040).guidance.anneal_iterations == 1020
    assert lasting(config, 680) == config


def test_nothing_else_changes_and_what_is_off_stays_off():
    config = with_overrides(configured("toybox64", guidance="sds"), {"guidance.times.late_from": "null"})
    short = lasting(config, 2)
    assert short.guidance.times.late_from is None and short.scene.density.every == 0
    # Recurring events happen at most once per iteration.
    assert short.cameras.widen_every == 1
    names = {"iterations", "cameras.widen_from", "cameras.widen_every", "scene.sh_every"}
    names |= {"scene.density.first", "scene.density.last"}
    flat, changed = (dict(_flat(to_tree(one))) for one in (config, short))
    assert {name for name in flat if flat[name] != changed[name]} <= names


def _flat(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("preset", ["toybox", "paper"])
def test_every_loss_has_its_counts_scaled(preset, loss):
    config = configured(preset, guidance=loss)
    longer = lasting(config, 10 * config.iterations)
    for name in setting_names(config):
        leaf = name.rpartition(".")[2]
        if leaf in COUNTS:
            before, after = (_value(one, name) for one in (config, longer))
            assert after == (None if before is None else 10 * before), name


def _value(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def test_a_short_run_s_cameras_come_as_far():
    config = configured("toybox")
    short = lasting(config, 45)
    for share in (0.0, 0.5, 1.0):
        one, other = (
            np.asarray(camera_ranges(each.cameras, round(share * each.iterations))[2])
            for each in (config, short)
        )
        np.testing.assert_allclose(one, other, rtol=0.3)
