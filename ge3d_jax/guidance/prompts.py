"""View-dependent prompts and Perp-Neg: the text says which side of the object a camera sees.

Symbols: azimuth a, 0 = front, counter-clockwise; r, the share of the nearer-to-front of two views that the
positive embedding is mixed from; Δ_j = ε_{y_j} − ε_∅; s, the guidance scale. Equation 17 of arXiv 2412.05929.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

# Beyond these shares of one view the negative embedding of the other is dropped altogether.
_SHARE_WITHOUT_FIRST_NEGATIVE = 0.8
_SHARE_WITHOUT_SECOND_NEGATIVE = 0.2
# How fast a negative's weight falls as the camera leaves the view it forbids.
_SLOW_DECAY = 2.0
_FAST_DECAY = 10.0
# Keeps the projection finite where the text changes nothing.
_SMALLEST_SQUARED_NORM = 1e-6


@struct.dataclass
class ViewEmbeddings:
    """Text embeddings of one prompt, each (L, D).

    Attributes:
        front, side, back: the prompt as seen from there.
        negative: ∅ of the guided prediction on the denoising trajectory.
        noising: ∅ of the noising trajectory.
    """

    front: jax.Array
    side: jax.Array
    back: jax.Array
    negative: jax.Array
    noising: jax.Array


def view_prompts(prompt: str) -> tuple[str, str, str]:
    """The front, side and back sentences of a prompt."""
    return (
        f"The front view of {prompt}",
        f"The side view of {prompt}",
        f"The back view of {prompt}",
    )


def embed_views(
    encode: Callable[[list[str]], jax.Array],
    prompt: str,
    *,
    negative_prompt: str,
    noising_prompt: str,
) -> ViewEmbeddings:
    """Encode everything a run asks for.

    Args:
        encode: B texts → (B, L, D).
        prompt: what to make.
        negative_prompt: text of the negative embedding, possibly empty.
        noising_prompt: "negative" or "empty", the ∅ of the noising trajectory.
    """
    noising = negative_prompt if noising_prompt == "negative" else ""
    front, side, back, negative, noising_embedding = encode([*view_prompts(prompt), negative_prompt, noising])
    return ViewEmbeddings(front, side, back, negative, noising_embedding)


def view_mixture(azimuth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which two views a camera lies between, and how near it is to the first.

    Args:
        azimuth: (B,) radians, any turn; only its distance from the front counts.

    Returns:
        in_front (B,) bool, front and side rather than side and back; share (B,), r: 1 at the first of the
        two, 0 at the second, linear in the azimuth between.
    """
    distance = jnp.abs(jnp.mod(jnp.rad2deg(azimuth) + 180.0, 360.0) - 180.0)
    in_front = distance < 90.0
    return in_front, jnp.where(in_front, 1.0 - distance / 90.0, 1.0 - (distance - 90.0) / 90.0)


def perp_neg_embeddings(
    embeddings: ViewEmbeddings, azimuth: jax.Array, *, weight: float = -2.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The positive embedding and the two views to stay away from, for each camera.

    Args:
        azimuth: (B,) radians, any turn; only its distance from the front counts.
        weight: w, the strongest negative weight, at most 0.

    Returns:
        positive (B, L, D), negatives (B, 2, L, D), weights (B, 2).
    """
    chex.assert_rank(azimuth, 1)
    in_front, share = view_mixture(azimuth)

    def choose(front_half: jax.Array, back_half: jax.Array) -> jax.Array:
        return jnp.where(in_front[:, None, None], front_half, back_half)

    nearer = choose(embeddings.front, embeddings.side)
    farther = choose(embeddings.side, embeddings.back)
    positive = share[:, None, None] * nearer + (1.0 - share)[:, None, None] * farther
    negatives = jnp.stack([nearer, choose(embeddings.side, embeddings.front)], axis=1)

    has_first = share <= _SHARE_WITHOUT_FIRST_NEGATIVE
    has_second = share >= _SHARE_WITHOUT_SECOND_NEGATIVE
    front_first = jnp.where(has_first, weight * jnp.exp(-_SLOW_DECAY * share), 0.0)
    front_second = jnp.where(has_second, weight * jnp.exp(-_FAST_DECAY * (1.0 - share)), 0.0)
    back_first = jnp.where(has_first, weight / 2 * jnp.exp(-_FAST_DECAY * share), 0.0)
    first = jnp.where(in_front, front_first, back_first)
    second = jnp.where(in_front, front_second, weight)
    return positive, negatives, jnp.stack([first, second], axis=1)


def classifier_free_epsilon(
    epsilon_empty: jax.Array, epsilon_positive: jax.Array, guidance_scale: float
) -> jax.Array:
    """ε_∅ + s·(ε_y − ε_∅) (equation 15)."""
    return epsilon_empty + guidance_scale * (epsilon_positive - epsilon_empty)


def perpendicular_part(difference: jax.Array, direction: jax.Array) -> jax.Array:
    """`difference` (B, ...) less its component along `direction` (B, ...), sample by sample."""
    axes = tuple(range(1, direction.ndim))
    along = jnp.sum(difference * direction, axis=axes, keepdims=True)
    squared_norm = jnp.sum(direction**2, axis=axes, keepdims=True)
    return difference - along / jnp.maximum(squared_norm, _SMALLEST_SQUARED_NORM) * direction


def perp_neg_epsilon(
    epsilon_empty: jax.Array,
    epsilon_positive: jax.Array,
    epsilon_negatives: jax.Array,
    weights: jax.Array,
    guidance_scale: float,
) -> jax.Array:
    """ε_∅ + s·(Δ_pos + Σ_j w_j·Δ_j^⊥), the guided prediction (equation 17).

    Args:
        epsilon_empty, epsilon_positive: (B, ...).
        epsilon_negatives: (B, J, ...).
        weights: (B, J).
        guidance_scale: s.

    Returns:
        (B, ...).
    """
    chex.assert_equal_shape([epsilon_empty, epsilon_positive])
    chex.assert_shape(epsilon_negatives, (*weights.shape, *epsilon_empty.shape[1:]))
    direction = epsilon_positive - epsilon_empty

    def weighted(epsilon: jax.Array, weight: jax.Array) -> jax.Array:
        part = perpendicular_part(epsilon - epsilon_empty, direction)
        return weight.reshape(-1, *(1,) * (part.ndim - 1)) * part

    away = jnp.sum(jax.vmap(weighted, in_axes=(1, 1))(epsilon_negatives, weights), axis=0)
    return epsilon_empty + guidance_scale * (direction + away)
