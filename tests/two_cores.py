"""The mark of tests whose processes each keep a processor core."""

import os

import pytest

from ge3d_jax.core.pinned import usable_cores

needs_two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(usable_cores()) < 2, reason="no two cores to choose from"
)
