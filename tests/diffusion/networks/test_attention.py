"""Attention compared with plain NumPy, whole and chunked, values and gradients; the choice of kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.devices import Target, compiling_for
from ge3d_jax.diffusion.networks import attention as module
from tests.reference_models import random_array


def _slow_attention(query, key, value, causal):
    """Compute one query of one head at a time, in float64."""
    query, key, value = (array.astype(np.float64) for array in (query, key, value))
    output = np.zeros_like(query)
    for sample, position, head in np.ndindex(query.shape[:3]):
        end = position + 1 if causal else key.shape[1]
        logits = key[sample, :end, head] @ query[sample, position, head] / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max())
        output[sample, position, head] = weights / weights.sum() @ value[sample, :end, head]
    return output


def _inputs(queries, keys):
    names = {"query": queries, "key": keys, "value": keys}
    return [random_array(name, (2, length, 4, 4)) for name, length in names.items()]


@pytest.fixture(
    params=[(4096, 4, 4), (28, 4, 2), (1, 1, 1)],
    ids=["all heads at once", "two heads at a time", "one head at a time"],
)
def few_keys(request, monkeypatch):
    """Simulate large inputs by allowing only a few keys at a time."""
    keys, shortest, heads = request.param
    monkeypatch.setattr(module, "_KEYS_AT_A_TIME", keys)
    monkeypatch.setattr(module, "_SHORTEST_PART", shortest)
    assert module._parts(2, 12, 7, 4, 4)[1] == heads


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [12, 4, 5])
def test_equals_the_slow_version(few_keys, causal, chunk):
    query, key, value = _inputs(12, 12 if causal else 7)
    output = module.attention(query, key, value, causal=causal, chunk=chunk)
    np.testing.assert_allclose(output, _slow_attention(query, key, value, causal), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [12, 5])
def test_large_logits_do_not_overflow(chunk):
    query, key, value = _inputs(12, 7)
    # Far above 88, the logarithm of float32's largest number.
    query = 1000.0 * query
    output = module.attention(query, key, value, chunk=chunk)
    np.testing.assert_allclose(output, _slow_attention(query, key, value, False), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunk", [12, 5])
def test_half_precision_is_only_in_the_products(chunk):
    arrays = [jnp.asarray(array, jnp.bfloat16) for array in _inputs(12, 7)]
    output = module.attention(*arrays, chunk=chunk)
    assert output.dtype == jnp.bfloat16
    expected = _slow_attention(*(np.asarray(array, np.float32) for array in arrays), False)
    # Roundings of the scaled query, the weights and the result, 2⁻⁹ each.
    np.testing.assert_allclose(np.asarray(output, np.float32), expected, atol=4 * 2**-9)


def test_gradients_do_not_depend_on_the_chunks(few_keys):
    inputs, direction = _inputs(11, 7), random_array("direction", (2, 11, 4, 4))

    def gradients(chunk):
        return jax.grad(lambda arrays: (module.attention(*arrays, chunk=chunk) * direction).sum())(inputs)

    for in_chunks, expected in zip(gradients(4), gradients(11), strict=True):
        np.testing.assert_allclose(in_chunks, expected, rtol=1e-4, atol=1e-6)


def test_memory_grows_linearly_with_the_queries():
    def temporary_bytes(tokens):
        arrays = [jax.ShapeDtypeStruct((1, tokens, 1, 8), np.float32)] * 3
        return jax.jit(module.attention).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    few, many = 2 * module.QUERIES_AT_A_TIME, 8 * module.QUERIES_AT_A_TIME
    # With four times the tokens, a full matrix of logits would take sixteen times the memory.
    assert temporary_bytes(many) <= 6 * temporary_bytes(few)
    assert temporary_bytes(many) < many * many * 4


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (Target("cpu", None), [(128, 1), (256, 1), (256, 1)]),
        (Target("gpu", (8, 0)), [(1024, 1), (1024, 2), (1024, 1)]),
    ],
    ids=["CPU", "GPU"],
)
def test_parts_are_larger_on_a_gpu(target, parts):
    """For a guided batch of 16: the UNet's finest and second finest level; for four views: the VAE."""
    with compiling_for(target):
        assert [
            module._parts(16, 4096, 4096, 5, 1024),
            module._parts(16, 1024, 1024, 10, 1024),
            module._parts(4, 4096, 4096, 1, 1024),
        ] == parts


@pytest.mark.parametrize(
    ("dtype", "channels", "queries", "keys", "causal", "on_gpu", "flash"),
    [
        pytest.param(jnp.bfloat16, 64, 16, 16, False, True, True, id="the UNet's self-attention"),
        pytest.param(jnp.bfloat16, 64, 16, 77, False, True, True, id="the UNet's attention to the text"),
        pytest.param(jnp.float16, 40, 9, 9, False, True, True, id="an odd number of tokens"),
        pytest.param(jnp.bfloat16, 64, 77, 77, True, True, True, id="the text encoder's"),
        pytest.param(jnp.bfloat16, 64, 16, 16, True, True, True, id="an even number of tokens in order"),
        pytest.param(jnp.bfloat16, 128, 16, 16, False, True, True, id="the longest heads"),
        pytest.param(jnp.bfloat16, 160, 16, 16, False, True, False, id="the deepest blocks of 1.5"),
        pytest.param(jnp.bfloat16, 512, 16, 16, False, True, False, id="the VAE's single head"),
        pytest.param(jnp.bfloat16, 4, 16, 16, False, True, False, id="no multiple of eight"),
        pytest.param(jnp.float32, 64, 16, 16, False, True, False, id="float32"),
        pytest.param(jnp.bfloat16, 64, 16, 16, False, False, False, id="a CPU"),
    ],
)
def test_flash_attention_is_named_explicitly_where_available(
    monkeypatch, dtype, channels, queries, keys, causal, on_gpu, flash
):
    asked, original = [], jax.nn.dot_product_attention

    def plain(query, key, value, *, implementation, **options):
        asked.append(implementation)
        assert query.shape[1] % 2 == key.shape[1] % 2 == 0
        return original(query, key, value, **options)

    monkeypatch.setattr(module, "has_flash_attention", lambda: on_gpu)
    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    query, key, value = (
        jnp.asarray(random_array(name, (1, length, 2, channels)), dtype)
        for name, length in (("query", queries), ("key", keys), ("value", keys))
    )
    output = module.attention(query, key, value, causal=causal)
    assert asked == (["cudnn"] if flash else [])
    expected = module.chunked_attention(query, key, value, causal=causal, chunk=queries)
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (output, expected)), atol=0.03)


@pytest.mark.parametrize("place", range(3))
def test_flash_attention_takes_arrays_of_one_dtype_only(place):
    arrays = [jnp.zeros((1, 4, 2, 8), jnp.bfloat16)] * 3
    assert module.takes_flash(*arrays)
    arrays[place] = arrays[place].astype(jnp.float16)
    assert not module.takes_flash(*arrays)
