"""Group normalization against Flax's own, values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.diffusion.networks.group_norm import GroupNorm
from tests.errors import relative_error

EPSILON = 1e-5


def _both(groups, channels, dtype=jnp.float32):
    rng = np.random.default_rng(channels)
    parameters = {name: rng.normal(size=channels).astype(np.float32) for name in ("scale", "bias")}
    theirs = nn.GroupNorm(num_groups=groups, epsilon=EPSILON, use_fast_variance=False, dtype=dtype)
    return GroupNorm(groups, EPSILON, dtype), theirs, parameters


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("shape", "groups"), [((2, 5, 3, 12), 4), ((1, 4, 4, 6), 6), ((3, 7, 8), 1)])
def test_values_and_gradients_are_those_of_flax(shape, groups, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours, theirs, parameters = _both(groups, shape[-1])
    rng = np.random.default_rng(0)
    # A mean far from 0: sums of squares would lose 1e-3 of the variance, and deviations 1e-5 of themselves.
    x = jnp.asarray(100.0 + rng.normal(size=shape), jnp.float32)
    seen_by = jnp.asarray(rng.normal(size=shape), jnp.float32)

    def results(module):
        def loss(parameters, x):
            y = module.apply({"params": parameters}, x)
            return jnp.sum(seen_by * jnp.sin(y)), y

        gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(parameters, x)
        return y, *gradients

    for got, expected in zip(jax.tree.leaves(results(ours)), jax.tree.leaves(results(theirs)), strict=True):
        assert relative_error(got, expected) < 1e-4


def test_it_has_the_parameters_and_initialization_of_flax():
    ours, theirs, _ = _both(2, 8)
    x = jnp.ones((1, 2, 2, 8))
    got, expected = (module.init(jax.random.key(0), x) for module in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_half_precision_computes_statistics_in_full_precision():
    ours, theirs, parameters = _both(4, 8, jnp.bfloat16)
    x = jnp.asarray(30.0 + np.random.default_rng(1).normal(size=(2, 16, 16, 8)), jnp.bfloat16)
    got, expected = (module.apply({"params": parameters}, x) for module in (ours, theirs))
    assert got.dtype == expected.dtype == jnp.bfloat16
    # One step of bfloat16 at most: 2⁻⁸ of the value.
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(expected, np.float32), rtol=2**-7, atol=2**-8
    )
