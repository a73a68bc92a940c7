"""Softmax attention whose memory grows linearly in the number of tokens.

On an NVIDIA GPU, cuDNN's flash attention where it can be had; everywhere else, and for shapes that it does
not take, plain attention of some queries at a time.

Symbols: B batch, Q queries, K keys, H heads, D channels of one head.
"""

import jax
import jax.numpy as jnp

from ge3d_jax.devices import has_flash_attention

# Queries at a time. 1024 tokens are 32×32 latents: there the whole matrix of logits is a few tens of MB a
# sample, and one large product is faster than a loop of small ones.
QUERIES_AT_A_TIME = 1024

# What cuDNN takes (support matrix of its Attention operation, and the checks in `jax.nn`): half precision,
# heads of up to 128 channels (256 on Hopper alone) in multiples of 8.
_FLASH_TYPES = (jnp.bfloat16, jnp.float16)
_FLASH_LARGEST_HEAD = 128
_FLASH_HEAD_MULTIPLE = 8


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array, causal: bool
) -> jax.Array:
    """Plain attention of the queries standing at `positions` (Q,). Logits and softmax are float32."""
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if causal:
        visible = jnp.arange(key.shape[1])[None, :] <= positions[:, None]
        logits = jnp.where(visible, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def chunked_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool, chunk: int
) -> jax.Array:
    """Plain attention, `chunk` queries at a time: shapes as in `attention`, any type of number."""
    batch, queries, heads, channels = query.shape
    positions = jnp.arange(queries)
    if queries <= chunk:
        return _attend(query, key, value, positions, causal)
    chunks = -(-queries // chunk)
    padding = chunks * chunk - queries
    padded = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    padded = padded.reshape(batch, chunks, chunk, heads, channels).swapaxes(0, 1)
    positions = jnp.arange(chunks * chunk).reshape(chunks, chunk)

    # Recomputed on the way back: the loop would otherwise keep the weights of every chunk for the gradient.
    @jax.checkpoint
    def one_chunk(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _attend(part[0], key, value, part[1], causal)

    result = jax.lax.map(one_chunk, (padded, positions))
    result = result.swapaxes(0, 1).reshape(batch, chunks * chunk, heads, channels)
    return result[:, :queries]


def takes_flash(query: jax.Array, key: jax.Array, value: jax.Array) -> bool:
    """Whether cuDNN's flash attention, on a GPU that has it, computes these shapes and types."""
    channels = query.shape[-1]
    return (
        query.dtype == key.dtype == value.dtype
        and query.dtype in _FLASH_TYPES
        and channels <= _FLASH_LARGEST_HEAD
        and channels % _FLASH_HEAD_MULTIPLE == 0
    )


def _flash_attention(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    """Attention by cuDNN; what `takes_flash` says yes to."""
    batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    # JAX refuses the gradient for odd numbers, such as the 77 tokens of a text; a masked one more will do.
    is_odd = queries % 2 == 1 or keys % 2 == 1

    def evened(array: jax.Array) -> jax.Array:
        return jnp.pad(array, ((0, 0), (0, array.shape[1] % 2), (0, 0), (0, 0)))

    # Named: left to itself, JAX takes the plain form and holds all logits in float32.
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
        key, value: (B, K, H, D).
        causal: query i sees the keys 0..i only.
        chunk: queries at a time, at least 1, where flash attention cannot be had: fewer take less memory.

    Returns:
        (B, Q, H, D) in the type of `value`.
    """
    if has_flash_attention() and takes_flash(query, key, value):
        return _flash_attention(query, key, value, causal)
    return chunked_attention(query, key, value, causal=causal, chunk=chunk)
