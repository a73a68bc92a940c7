"""Device queries: generation, memory, and room for copies of a model."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ge3d_jax.core import devices as module
from ge3d_jax.core.caching import cache_folder, keep_compiled_code
from ge3d_jax.core.devices import compute_dtype
from ge3d_jax.core.errors import UserError


@pytest.mark.parametrize(
    ("backend", "capability", "flash", "dtype"),
    [
        ("cpu", None, False, "float32"),
        ("gpu", "9.0", True, "bfloat16"),
        ("gpu", "8.6", True, "bfloat16"),
        ("gpu", "7.5", False, "float32"),
        # AMD GPUs name their generation differently, and TPUs do not name it; both support bfloat16.
        ("gpu", "gfx942", False, "bfloat16"),
        ("tpu", None, False, "bfloat16"),
    ],
)
def test_flash_attention_and_half_precision_depend_on_the_generation(
    monkeypatch, backend, capability, flash, dtype
):
    device = SimpleNamespace() if capability is None else SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert module.has_flash_attention() == flash
    assert compute_dtype("auto") == dtype


def test_precisions_are_named_and_no_other_dtype_is_taken():
    assert compute_dtype("float32") == np.float32 and compute_dtype("bfloat16").itemsize == 2
    with pytest.raises(UserError, match="'float16' does not exist; choose one of auto, float32, bfloat16"):
        compute_dtype("float16")


def test_memory_is_what_the_device_reports_and_a_cpu_has_all_of_the_machine():
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 7, "bytes_in_use": 2})
    silent = SimpleNamespace(platform="gpu", memory_stats=lambda: None)
    assert (module.memory_limit(gpu), module.memory_in_use(gpu)) == (7, 2)
    assert (module.memory_limit(silent), module.memory_in_use(silent)) == (None, 0)
    assert module.memory_limit(jax.devices()[0]) > 2**28


@pytest.mark.parametrize(
    ("platform", "size", "held", "count"),
    [
        ("cpu", 4, 10, 2),
        ("cpu", 3, 10, 1),
        # Two copies would take more than a fifth of the machine's memory.
        ("cpu", 4, 11, 1),
        ("gpu", 4, 11, 2),
    ],
)
def test_a_batch_is_sharded_evenly_and_large_models_are_not_replicated_on_cpu_devices(
    monkeypatch, platform, size, held, count
):
    both = [SimpleNamespace(platform=platform, id=number) for number in range(2)]
    monkeypatch.setattr(jax, "local_devices", lambda: both)
    monkeypatch.setattr(module, "memory_limit", lambda device: 100)
    monkeypatch.setattr(module, "Mesh", lambda devices, axes: devices)
    mesh = module.batch_mesh(size, copied={"weights": np.zeros(held, np.int8)})
    assert len(mesh) == count


@pytest.mark.parametrize(
    ("size", "seeds", "shape"),
    [
        (4, 2, {"seeds": 2, "batch": 1}),
        (4, 3, {"seeds": 1, "batch": 2}),
        (3, 3, {"seeds": 1, "batch": 1}),
        (4, 1, {"batch": 2}),
    ],
)
def test_seeds_which_do_not_communicate_are_given_devices_before_views(size, seeds, shape):
    assert len(jax.local_devices()) == 2
    assert dict(module.batch_mesh(size, seeds=seeds).shape) == shape


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not pin processes")
def test_a_processor_acts_as_two_devices_unless_only_one_core_may_be_used():
    program = """
import os
import jax
from ge3d_jax.core.devices import use_processor_cores
cores = os.sched_getaffinity(0)
for usable in (cores, {min(cores)}):
    os.sched_setaffinity(0, usable)
    use_processor_cores()
    print(jax.config.jax_num_cpu_devices)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(min(2, len(os.sched_getaffinity(0)))), "1"]


@pytest.mark.parametrize("told", [True, False])
def test_the_cache_is_where_the_environment_says_or_in_the_home_folder(monkeypatch, tmp_path, told):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere") if told else "")
    assert cache_folder() == tmp_path / ("elsewhere" if told else ".cache") / "ge3d_jax"


def test_a_configured_compilation_cache_is_left_unchanged():
    before = jax.config.jax_compilation_cache_dir
    assert before is not None
    keep_compiled_code()
    assert jax.config.jax_compilation_cache_dir == before


def test_compiled_code_is_cached_even_if_jax_was_used_before(tmp_path):
    program = """
import jax
jax.jit(lambda x: x + 1)(1.0)
from ge3d_jax.core.caching import keep_compiled_code
keep_compiled_code()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 2)(1.0)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert list((tmp_path / "ge3d_jax" / "xla").iterdir())
