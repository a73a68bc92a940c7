"""What every test shares: the CPU unless told otherwise, and property tests that repeat their cases."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The processor as two devices, as the experiments see it, whatever the machine has.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# What several tests compile, or an earlier run did, is compiled once, also in processes that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Tests compile much and compute little. Everything passes with XLA's full optimisation, too:
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test takes half as long again.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis

# A first example pays for compilation, so a deadline would measure XLA; a fixed seed keeps a red run red.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("project")
