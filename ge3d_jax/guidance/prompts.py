"""View-dependent prompts and Perp-Neg: the text describes which side of the object a camera sees.

For models trained on such captions, the text can also describe the camera's elevation with an "overhead
view", as in DreamFusion (arXiv 2209.14988).

Symbols: azimuth a, 0 = front, counterclockwise; r, the weight of the view nearer to the front among the two
that the positive embedding interpolates; Δ_j = ε_{y_j} − ε_∅; s, the guidance scale. Equation 17 of arXiv
2412.05929.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.diffusion.denoiser import ViewTexts

# Beyond these weights of one view, the negative embedding of the other is dropped altogether.
_SHARE_WITHOUT_FIRST_NEGATIVE = 0.8
_SHARE_WITHOUT_SECOND_NEGATIVE = 0.2
# How fast a negative's weight decays with the camera's position between the two views.
_SLOW_DECAY = 2.0
_FAST_DECAY = 10.0
# The strongest weight of the published runs.
PUBLISHED_WEIGHT = -2.0
# (in_front (B,), share (B,)) → weights (B, 2) of the two views to avoid, at the published strength.
WeightRule = Callable[[jax.Array, jax.Array], jax.Array]


def _original_weights(in_front: jax.Array, share: jax.Array) -> jax.Array:
    """Return Perp-Neg's own weights, also used by GE3D and LucidDreamer; 0 near the negative's own view."""
    has_first = share <= _SHARE_WITHOUT_FIRST_NEGATIVE
    has_second = share >= _SHARE_WITHOUT_SECOND_NEGATIVE
    front_first = jnp.where(has_first, -2.0 * jnp.exp(-_SLOW_DECAY * share), 0.0)
    front_second = jnp.where(has_second, -2.0 * jnp.exp(-_FAST_DECAY * (1.0 - share)), 0.0)
    back_first = jnp.where(has_first, -jnp.exp(-_FAST_DECAY * share), 0.0)
    first = jnp.where(in_front, front_first, back_first)
    return jnp.stack([first, jnp.where(in_front, front_second, -2.0)], axis=1)


def _threestudio_weights(in_front: jax.Array, share: jax.Array) -> jax.Array:
    """Return threestudio's weights, which SDS, SDI, and CSD use there; never 0."""
    near, far = jnp.exp(-share / 2.0), jnp.exp(-(1.0 - share) / 2.0)
    front = jnp.stack([2.426 - 4.0 * near, 2.426 - 4.0 * far], axis=1)
    back = jnp.stack([0.606 - near, -0.967 - near], axis=1)
    return jnp.where(in_front[:, None], front, back)


WEIGHT_RULES: dict[str, WeightRule] = {"original": _original_weights, "threestudio": _threestudio_weights}


@struct.dataclass
class PromptEmbeddings:
    """Text embeddings of one prompt, each (L, D).

    Attributes:
        front, side, back: the prompt for each of these views.
        plain: the prompt without a view description.
        negative: the negative prompt.
        empty: the empty prompt.
        source: the same embeddings for the object before an edit; None if there is no edit.
        overhead: the prompt for the view from above; None if the text does not describe elevation.
    """

    front: jax.Array
    side: jax.Array
    back: jax.Array
    plain: jax.Array
    negative: jax.Array
    empty: jax.Array
    source: "PromptEmbeddings | None" = None
    overhead: jax.Array | None = None


def view_prompts(prompt: str) -> tuple[str, str, str]:
    """Return the front-, side-, and back-view versions of a prompt."""
    return (
        f"The front view of {prompt}",
        f"The side view of {prompt}",
        f"The back view of {prompt}",
    )


def embed_prompt(
    encode: Callable[[list[str]], jax.Array],
    prompt: str,
    *,
    negative_prompt: str,
    source_prompt: str | None = None,
    use_overhead: bool = False,
) -> PromptEmbeddings:
    """Encode all texts that a loss may use.

    Args:
        encode: B texts → (B, L, D).
        prompt: describes the object to generate.
        negative_prompt: describes what to avoid, possibly empty.
        source_prompt: describes the object before an edit; None if there is no edit.
        use_overhead: whether the text describes the camera's elevation.
    """

    def embedded(prompt: str, source: PromptEmbeddings | None) -> PromptEmbeddings:
        texts = [*view_prompts(prompt), prompt, negative_prompt, ""]
        if use_overhead:
            texts.append(f"The overhead view of {prompt}")
        front, side, back, plain, negative, empty, *above = encode(texts)
        overhead = above[0] if use_overhead else None
        return PromptEmbeddings(front, side, back, plain, negative, empty, source, overhead)

    return embedded(prompt, None if source_prompt is None else embedded(source_prompt, None))


def view_mixture(azimuth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Determine which two views a camera lies between, and how close it is to the first.

    Args:
        azimuth: (B,) radians, any number of turns; only the distance from the front matters.

    Returns:
        in_front (B,) bool, True between front and side, False between side and back; share (B,), r: 1 at the
        first of the two views, 0 at the second, linear in the azimuth in between.
    """
    distance = jnp.abs(jnp.mod(jnp.rad2deg(azimuth) + 180.0, 360.0) - 180.0)
    in_front = distance < 90.0
    return in_front, jnp.where(in_front, 1.0 - distance / 90.0, 1.0 - (distance - 90.0) / 90.0)


def overhead_share(polar: jax.Array) -> jax.Array:
    """Return the weight of the overhead view in the text embedding, in [0, 0.5].

    Args:
        polar: (B,) radians from +z.

    Returns:
        (B,), 0 at or below the horizon, 0.5 within 30° of the vertical, linear in between.
    """
    return jnp.clip((90.0 - jnp.rad2deg(polar)) / 120.0, 0.0, 0.5)


def perp_neg_embeddings(
    embeddings: PromptEmbeddings,
    azimuth: jax.Array,
    *,
    weight: float = PUBLISHED_WEIGHT,
    rule: str = "original",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the positive embedding and the two views to avoid, for each camera.

    Args:
        azimuth: (B,) radians, any number of turns; only the distance from the front matters.
        weight: w, the strongest negative weight, at most 0; it scales all others.
        rule: key of WEIGHT_RULES, how the weights depend on the azimuth.

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

    weights = weight / PUBLISHED_WEIGHT * WEIGHT_RULES[rule](in_front, share)
    return positive, negatives, weights


def view_texts(
    embeddings: PromptEmbeddings,
    azimuth: jax.Array,
    *,
    use_perp_neg: bool,
    weight: float = PUBLISHED_WEIGHT,
    rule: str = "original",
    polar: jax.Array | None = None,
) -> ViewTexts:
    """Assemble the text embeddings of each view.

    Args:
        embeddings: of the prompt.
        azimuth: (B,) radians.
        use_perp_neg: whether to include views to avoid.
        weight: w, see `perp_neg_embeddings`.
        rule: likewise.
        polar: (B,) radians from +z, used if there is an overhead embedding; None to ignore elevation.
    """
    positive, avoided, weights = perp_neg_embeddings(embeddings, azimuth, weight=weight, rule=rule)
    if embeddings.overhead is not None and polar is not None:
        above = overhead_share(polar)[:, None, None]
        positive += above * (embeddings.overhead - positive)
    kept = None if use_perp_neg else 0
    source = None
    if embeddings.source is not None:
        source = view_texts(
            embeddings.source, azimuth, use_perp_neg=use_perp_neg, weight=weight, rule=rule, polar=polar
        )
    return ViewTexts(
        positive=positive,
        avoided=avoided[:, :kept],
        weights=weights[:, :kept],
        negative=embeddings.negative,
        empty=embeddings.empty,
        plain=embeddings.plain,
        source=source,
    )
