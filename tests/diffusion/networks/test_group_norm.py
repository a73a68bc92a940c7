"""Group normalization compared with Flax's own, values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.devices import Target, compiling_for
from ge3d_jax.diffusion.networks.group_norm import GroupNorm
from tests.errors import relative_error

EPSILON = 1e-5
TARGETS = {"cpu": Target("cpu", None), "gpu": Target("gpu", (9, 0))}


def _both(groups, channels, dtype=jnp.float32):
    rng = np.random.default_rng(channels)
    parameters = {name: rng.normal(size=channels).astype(np.float32) for name in ("scale", "bias")}
    theirs = nn.GroupNorm(num_groups=groups, epsilon=EPSILON, use_fast_variance=False, dtype=dtype)
    return GroupNorm(groups, EPSILON, dtype), theirs, parameters


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 5, 3, 12), 4), ((1, 4, 4, 6), 6), ((3, 7, 8), 1), ((2, 3, 120), 2)]
)
def test_values_and_gradients_are_those_of_flax(shape, groups, target):
    ours, theirs, parameters = _both(groups, shape[-1])
    rng = np.random.default_rng(0)
    # With a mean far from 0, sums of squares would lose 1e-3 of the variance, and deviations only 1e-5.
    x = jnp.asarray(100.0 + rng.normal(size=shape), jnp.float32)
    seen_by = jnp.asarray(rng.normal(size=shape), jnp.float32)

    def results(module):
        def loss(parameters, x):
            y = module.apply({"params": parameters}, x)
            return jnp.sum(seen_by * jnp.sin(y)), y

        gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(parameters, x)
        return y, *gradients

    with compiling_for(TARGETS[target]):
        got_results = results(ours)
    for got, expected in zip(jax.tree.leaves(got_results), jax.tree.leaves(results(theirs)), strict=True):
        assert relative_error(got, expected) < 1e-4


def test_it_has_the_parameters_and_initialization_of_flax():
    ours, theirs, _ = _both(2, 8)
    x = jnp.ones((1, 2, 2, 8))
    got, expected = (module.init(jax.random.key(0), x) for module in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("level", [0.0, 30.0])
def test_half_precision_computes_statistics_in_full_precision(target, level):
    ours, theirs, parameters = _both(4, 8, jnp.bfloat16)
    x = jnp.asarray(level + np.random.default_rng(1).normal(size=(2, 16, 16, 8)), jnp.bfloat16)
    with compiling_for(TARGETS[target]):
        got = ours.apply({"params": parameters}, x)
    expected = theirs.apply({"params": parameters}, x)
    assert got.dtype == expected.dtype == jnp.bfloat16
    # At most one bfloat16 step: 2⁻⁸ of the value.
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(expected, np.float32), rtol=2**-7, atol=2**-8
    )


@pytest.mark.parametrize("target", TARGETS)
def test_half_precision_has_the_gradients_of_flax(target):
    ours, theirs, parameters = _both(4, 8, jnp.bfloat16)
    x = jnp.asarray(2.0 + np.random.default_rng(2).normal(size=(2, 8, 8, 8)), jnp.bfloat16)
    seen_by = jnp.asarray(np.random.default_rng(3).normal(size=x.shape), jnp.float32)

    def gradient(module):
        def seen(x):
            return jnp.sum(seen_by * module.apply({"params": parameters}, x))

        return jax.jit(jax.grad(seen))(x)

    with compiling_for(TARGETS[target]):
        got = gradient(ours)
    assert relative_error(got.astype(jnp.float32), gradient(theirs).astype(jnp.float32)) < 0.01


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_shift_is_added_to_every_pixel(target, dtype):
    ours, _, parameters = _both(2, 6, dtype)
    rng = np.random.default_rng(4)
    x, shift = jnp.asarray(rng.normal(size=(3, 4, 4, 6)), dtype), jnp.asarray(rng.normal(size=(3, 6)), dtype)
    whole = GroupNorm(2, EPSILON)
    expected = whole.apply(
        {"params": parameters}, x.astype(jnp.float32) + shift[:, None, None].astype(jnp.float32)
    )
    with compiling_for(TARGETS[target]):
        got = ours.apply({"params": parameters}, x, shift)
    assert got.dtype == dtype
    assert relative_error(got.astype(jnp.float32), expected) < (1e-5 if dtype == jnp.float32 else 2**-8)
