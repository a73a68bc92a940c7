"""Configuration of all tests: CPU by default, and property tests with reproducible cases."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The CPU acts as two devices, as in the experiments, regardless of the number of cores.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Compiled code is cached for all tests and later runs, including processes that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Tests compile a lot and compute little. Everything also passes with XLA's full optimization:
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test takes far longer.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's former CPU code generator compiles in a half to a third of the current one's time. Newer releases no
# longer have it, and XLA terminates processes with unknown flags.
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import gc
from collections.abc import Iterator

import hypothesis
import jax
import pytest

# The first example includes compilation, so a deadline would measure XLA; a fixed seed repeats failures.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("project")

# Folders whose tests compile complete iterations.
_LONGEST = ("runs", "toybox", "training")

# Out of the 65 530 memory mappings that Linux allows a process; a compiled program takes about six.
_MANY_MAPPINGS = 30_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no worker waits long for another at the end."""
    items.sort(key=lambda item: item.path.parent.name not in _LONGEST)


@pytest.fixture(scope="module", autouse=True)
def _compiled_code_makes_room() -> Iterator[None]:
    """Drop compiled code between modules if there is a lot: a process out of memory mappings is killed."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()
