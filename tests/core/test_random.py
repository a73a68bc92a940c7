"""Random numbers drawn as one flat array."""

import jax
import numpy as np
import pytest

from ge3d_jax.core.random import normal


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4, 5)])
def test_the_numbers_are_those_of_jax(shape):
    key = jax.random.key(3)
    np.testing.assert_array_equal(normal(key, shape), jax.random.normal(key, shape))
