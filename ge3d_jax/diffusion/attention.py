"""Softmax attention whose memory grows linearly in the number of tokens.

Symbols: B batch, Q queries, K keys, H heads, D channels of one head.
"""

import jax
import jax.numpy as jnp

# Above this many queries the logits (B, H, Q, K) are never held at once. 1024 tokens are 32×32 latents: there
# the whole matrix is a few tens of MB, and one large product is faster than a loop of small ones.
WHOLE_QUERIES = 1024
# Queries per turn of the loop: large enough to keep the matrix product busy, small enough to bound memory.
CHUNK_QUERIES = 512


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


def attention(query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool = False) -> jax.Array:
    """softmax(query · keyᵀ / √D) · value.

    Args:
        query: (B, Q, H, D).
        key, value: (B, K, H, D).
        causal: query i sees the keys 0..i only.

    Returns:
        (B, Q, H, D) in the type of `value`.
    """
    batch, queries, heads, channels = query.shape
    positions = jnp.arange(queries)
    if queries <= WHOLE_QUERIES:
        return _attend(query, key, value, positions, causal)
    chunks = -(-queries // CHUNK_QUERIES)
    padding = chunks * CHUNK_QUERIES - queries
    padded = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    padded = padded.reshape(batch, chunks, CHUNK_QUERIES, heads, channels).swapaxes(0, 1)
    positions = jnp.arange(chunks * CHUNK_QUERIES).reshape(chunks, CHUNK_QUERIES)

    # Recomputed on the way back: the loop would otherwise keep the weights of every chunk for the gradient.
    @jax.checkpoint
    def one_chunk(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _attend(chunk[0], key, value, chunk[1], causal)

    result = jax.lax.map(one_chunk, (padded, positions))
    result = result.swapaxes(0, 1).reshape(batch, chunks * CHUNK_QUERIES, heads, channels)
    return result[:, :queries]
