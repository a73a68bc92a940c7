"""The memory estimate of an iteration before it runs, and its rejection."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.training import compilation as module
from ge3d_jax.training.compilation import Compilation, check_memory, compilation_of
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation

GIGABYTE = 10**9
NEEDS_TEN = Compilation(
    seconds=12.34, arguments=3 * GIGABYTE, outputs=GIGABYTE, temporaries=6 * GIGABYTE, devices=1
)


def _gpu(limit, in_use=0):
    stats = {"bytes_limit": limit * GIGABYTE, "bytes_in_use": in_use * GIGABYTE}
    return SimpleNamespace(platform="gpu", memory_stats=lambda: stats)


def test_the_plan_is_the_compiler_s_and_donated_memory_counts_once():
    numbers = jax.ShapeDtypeStruct((1000,), jnp.float32)
    function = jax.jit(lambda x, y: (x + y, jnp.outer(x, y).sum()), donate_argnums=0)
    plan = compilation_of(function.lower(numbers, numbers).compile(), 1.5, 2)
    assert (plan.seconds, plan.devices, plan.arguments) == (1.5, 2, 8000)
    # The sum reuses the first argument's buffer; the scalar, and possibly a tuple table, come on top.
    assert 4 <= plan.outputs < 100
    assert plan.total == plan.arguments + plan.outputs + plan.temporaries


def test_a_compiler_that_does_not_tell_its_plan_stops_nobody():
    plan = compilation_of(SimpleNamespace(memory_analysis=lambda: None), 1.5, 1)
    assert str(plan) == "compiled in 1.5 s"
    check_memory(plan, _gpu(1), [])


def test_one_line_says_time_and_memory():
    text = str(NEEDS_TEN)
    assert "\n" not in text
    for part in ("12.3 s", "10.00 GB:", "3.00 for the model", "6.00 between"):
        assert part in text
    assert "on each of 2 devices" in str(dataclasses.replace(NEEDS_TEN, devices=2))


def test_what_fits_passes_and_what_does_not_names_the_settings():
    remedies = Distillation(Config(vae_rematerialize=False)).remedies(devices=1)
    check_memory(NEEDS_TEN, _gpu(10), remedies)
    with pytest.raises(UserError, match=r"10\.0 GB .* has only 9\.0 GB .* vae_remat.* and views_per_batch=1"):
        check_memory(NEEDS_TEN, _gpu(9), remedies)
    # Other data on the device counts too.
    with pytest.raises(UserError, match=r"12\.0 GB"):
        check_memory(NEEDS_TEN, _gpu(11, in_use=5), remedies)


def test_settings_that_are_low_already_are_not_named():
    assert Distillation(Config()).remedies(devices=1) == ["views_per_batch=1"]
    # One view at a time on each device.
    assert Distillation(Config()).remedies(devices=2) == ["views_per_batch=2"]
    # One view at a time, or one on each device, cannot be divided further.
    assert Distillation(Config(views_per_batch=1)).remedies(devices=1) == []
    assert Distillation(Config()).remedies(devices=4) == []
    with pytest.raises(UserError, match="lower views or the size of the pictures"):
        check_memory(NEEDS_TEN, _gpu(9), [])


def test_the_parts_of_a_processor_share_one_memory(monkeypatch):
    monkeypatch.setattr(module, "memory_limit", lambda device: 15 * GIGABYTE)
    processor = SimpleNamespace(platform="cpu", memory_stats=lambda: None)
    check_memory(NEEDS_TEN, processor, [])
    with pytest.raises(UserError, match=r"20\.0 GB"):
        check_memory(dataclasses.replace(NEEDS_TEN, devices=2), processor, [])
    # If the available memory is unknown, nothing is rejected.
    monkeypatch.setattr(module, "memory_limit", lambda device: None)
    check_memory(NEEDS_TEN, processor, [])
