"""Tests that need the compiler for NVIDIA cards: `make test-gpu-plan`."""

import pytest
from gpu_plan import compiling

from ge3d_jax.core.errors import UserError

try:
    compiling.prepare()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)
