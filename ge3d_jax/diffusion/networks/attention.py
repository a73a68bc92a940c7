"""Softmax attention whose memory grows linearly in the number of tokens.

On an NVIDIA GPU, this uses cuDNN's flash attention if available. Otherwise, and for shapes that cuDNN does
not support, it uses plain attention on some of the heads and queries at a time.

Symbols: B batch, Q queries, K keys, H heads, D channels per head.
"""

import jax
import jax.numpy as jnp

from ge3d_jax.core.devices import has_flash_attention, target_platform

# The maximum number of queries at a time. The logits then take 16 MiB (more if parts would get too short),
# which roughly fits into a CPU's cache: 1024 queries of one head against the 4096 keys of 64×64 latents take
# a third of the time of all heads at once.
QUERIES_AT_A_TIME = 1024
_KEYS_AT_A_TIME = 4096
# On a GPU, such small parts leave most of it idle, and each takes several launches: 90 000 in an iteration of
# the `paper` preset in float32. So there they are larger, with logits of up to 256 MiB.
_TIMES_ON_GPUS = 16
# A matrix product with fewer rows than this loses more than the cache gains.
_SHORTEST_PART = 128

# cuDNN's requirements (support matrix of its Attention operation, and the checks in `jax.nn`): half
# precision, and heads of up to 128 channels (256 only on Hopper) in multiples of 8.
_FLASH_TYPES = (jnp.bfloat16, jnp.float16)
_FLASH_LARGEST_HEAD = 128
_FLASH_HEAD_MULTIPLE = 8


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array, causal: bool
) -> jax.Array:
    """Plain attention of scaled queries (..., Q, D) at `positions` (Q,) to keys (..., K, D).

    Logits, softmax, and sums are float32, or float64 for float64 inputs. The softmax is normalized after the
    product with the values, whose rows are shorter than the softmax's own.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=dtype)
    if causal:
        visible = jnp.arange(key.shape[-2])[None, :] <= positions[:, None]
        logits = jnp.where(visible, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    mixed = jnp.einsum("...qk,...kd->...qd", weights.astype(value.dtype), value, preferred_element_type=dtype)
    return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(value.dtype)


def _parts(batch: int, queries: int, keys: int, heads: int, chunk: int) -> tuple[int, int]:
    """Choose how many queries and heads to process at a time: at most `chunk`, and a divisor of the heads."""
    times = 1 if target_platform() == "cpu" else _TIMES_ON_GPUS
    rows = times * chunk * _KEYS_AT_A_TIME // (batch * keys)
    length = min(queries, chunk, max(rows, _SHORTEST_PART))
    most = max(1, rows // length)
    return length, max(number for number in range(1, heads + 1) if heads % number == 0 and number <= most)


def chunked_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool, chunk: int
) -> jax.Array:
    """Plain attention on some heads and at most `chunk` queries at a time; for arguments, see `attention`."""
    batch, queries, heads, channels = query.shape
    length, heads_together = _parts(batch, queries, key.shape[1], heads, chunk)
    # Heads first: each is a product of contiguous matrices, and the batch axis stays whole for sharding.
    query, key, value = (jnp.moveaxis(array, 2, 0) for array in (query * channels**-0.5, key, value))
    if (length, heads_together) == (queries, heads):
        return jnp.moveaxis(_attend(query, key, value, jnp.arange(queries), causal), 0, 2)
    count = -(-queries // length)
    query = jnp.pad(query, ((0, 0), (0, 0), (0, count * length - queries), (0, 0)))
    positions = jnp.arange(count * length).reshape(count, length)

    def some_heads(arrays: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        query, key, value = arrays

        # Recomputed in the backward pass: otherwise, the loop would store the weights of every part.
        @jax.checkpoint
        def some_queries(part: tuple[jax.Array, jax.Array]) -> jax.Array:
            return _attend(part[0], key, value, part[1], causal)

        split = query.reshape(heads_together, batch, count, length, channels)
        mixed = jax.lax.map(some_queries, (jnp.moveaxis(split, 2, 0), positions))
        return jnp.moveaxis(mixed, 0, 2).reshape(heads_together, batch, count * length, -1)

    grouped = (array.reshape(-1, heads_together, *array.shape[1:]) for array in (query, key, value))
    mixed = jax.lax.map(some_heads, tuple(grouped)).reshape(heads, batch, count * length, -1)
    return jnp.moveaxis(mixed[:, :, :queries], 0, 2)


def takes_flash(query: jax.Array, key: jax.Array, value: jax.Array) -> bool:
    """Whether cuDNN's flash attention, on a GPU that has it, supports these shapes and dtypes."""
    channels = query.shape[-1]
    return (
        query.dtype == key.dtype == value.dtype
        and query.dtype in _FLASH_TYPES
        and channels <= _FLASH_LARGEST_HEAD
        and channels % _FLASH_HEAD_MULTIPLE == 0
    )


def _flash_attention(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    """Run cuDNN's attention, for inputs that pass `takes_flash`."""
    batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    # JAX refuses the gradient for odd lengths, e.g. the 77 tokens of a text, so we pad with a masked token.
    is_odd = queries % 2 == 1 or keys % 2 == 1

    def evened(array: jax.Array) -> jax.Array:
        return jnp.pad(array, ((0, 0), (0, array.shape[1] % 2), (0, 0), (0, 0)))

    # The implementation is named because JAX defaults to plain attention with all logits in float32.
    result = jax.nn.dot_product_attention(
        evened(query),
        evened(key),
        evened(value),
        is_causal=causal,
        query_seq_lengths=jnp.full(batch, queries, jnp.int32) if is_odd else None,
        key_value_seq_lengths=jnp.full(batch, keys, jnp.int32) if is_odd else None,
        implementation="cudnn",
    )
    return result[:, :queries]


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool = False,
    chunk: int = QUERIES_AT_A_TIME,
) -> jax.Array:
    """softmax(query · keyᵀ / √D) · value.

    Args:
        query: (B, Q, H, D).
        key: (B, K, H, D).
        value: (B, K, H, D).
        causal: whether query i sees only keys 0 to i.
        chunk: the most queries at a time without flash attention, at least 1; smaller chunks use less memory.

    Returns:
        (B, Q, H, D) with the dtype of `value`.
    """
    if has_flash_attention() and takes_flash(query, key, value):
        return _flash_attention(query, key, value, causal)
    return chunked_attention(query, key, value, causal=causal, chunk=chunk)
