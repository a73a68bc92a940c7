"""Attention against a plain NumPy version, whole and in chunks, values and gradients."""

import jax
import numpy as np
import pytest

from ge3d_jax.diffusion import attention as module
from tests.reference_models import random_array


def _slow_attention(query, key, value, causal):
    """One query of one head at a time, in float64."""
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
    return [random_array(name, (2, length, 3, 4)) for name, length in names.items()]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [None, 4, 5])
def test_equals_the_slow_version(monkeypatch, causal, chunk):
    if chunk is not None:
        monkeypatch.setattr(module, "WHOLE_QUERIES", 0)
        monkeypatch.setattr(module, "CHUNK_QUERIES", chunk)
    query, key, value = _inputs(12, 12 if causal else 7)
    output = module.attention(query, key, value, causal=causal)
    np.testing.assert_allclose(output, _slow_attention(query, key, value, causal), rtol=1e-5, atol=1e-6)


def test_gradients_do_not_depend_on_the_chunks(monkeypatch):
    inputs, direction = _inputs(11, 7), random_array("direction", (2, 11, 3, 4))

    def gradients():
        return jax.grad(lambda arrays: (module.attention(*arrays) * direction).sum())(inputs)

    whole = gradients()
    monkeypatch.setattr(module, "WHOLE_QUERIES", 0)
    monkeypatch.setattr(module, "CHUNK_QUERIES", 4)
    for in_chunks, expected in zip(gradients(), whole, strict=True):
        np.testing.assert_allclose(in_chunks, expected, rtol=1e-4, atol=1e-6)


def test_memory_grows_linearly_with_the_queries():
    def temporary_bytes(tokens):
        arrays = [jax.ShapeDtypeStruct((1, tokens, 1, 8), np.float32)] * 3
        return jax.jit(module.attention).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    few, many = 2 * module.WHOLE_QUERIES, 8 * module.WHOLE_QUERIES
    # Four times the tokens: a whole matrix of logits would take sixteen times the memory.
    assert temporary_bytes(many) <= 6 * temporary_bytes(few)
    assert temporary_bytes(many) < many * many * 4
