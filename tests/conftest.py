"""Shared by all tests: the CPU unless told otherwise, and property tests with reproducible cases."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The CPU as two devices, as in the experiments, however many cores the machine has.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Code is compiled once for all tests and later runs, including processes that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Tests compile a lot and compute little. Everything also passes with XLA's full optimization:
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test takes far longer.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's former way to write code for the CPU compiles in a half to a third of the time of the present one.
# Newer releases have it no more, and XLA ends a process whose flags it does not know.
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import gc
from collections.abc import Iterator

import hypothesis
import jax
import pytest

# The first example pays for compilation, so a deadline would measure XLA; a fixed seed keeps a red run red.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("project")

# What compiles whole iterations.
_LONGEST = ("runs", "toybox", "training")

# Of the 65 530 pieces of memory that Linux lets a process map; a compiled program takes about six.
_MANY_MAPPINGS = 30_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker waits long for the other at the end."""
    items.sort(key=lambda item: item.path.parent.name not in _LONGEST)


@pytest.fixture(scope="module", autouse=True)
def _compiled_code_makes_room() -> Iterator[None]:
    """Forget compiled code between modules where there is a lot: a process that may map no more is ended."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()
