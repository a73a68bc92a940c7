"""What one prompt lends another over the steps of an edit: Prompt-to-Prompt's control and LocalBlend.

Symbols: P source–target pairs; L tokens; N steps; M, α, e, g as in `attention_control`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.diffusion.networks.attention_control import AttentionControl
from ge3d_jax.diffusion.networks.unet import UNetConfig
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer
from ge3d_jax.editing.words import (
    Span,
    cross_gates,
    emphasis,
    find_words,
    matching,
    refinement,
    replacement,
    self_gates,
)

# Edge of the max-pooling window that dilates a word's attention map.
_SPREAD = 3
# Keeps an all-zero attention map finite; attention summed over N steps is far larger.
_SMALLEST_MAXIMUM = 1e-12
# The first level whose self-attention the published code shares: half the latent's resolution.
SELF_LEVEL = 1
FORMS = ("refine", "replace", "match")


@struct.dataclass
class PromptControl:
    """Attention control over all steps.

    Attributes:
        mapping: M, (P, L, L).
        share: α, (P, L).
        emphasis: e, (P, L).
        gates: g for each step, (N, P, L).
        self_gates: (N, P), 1 where a target takes its self-attention from its source.
        self_level, map_level: see `AttentionControl` (static).
    """

    mapping: jax.Array
    share: jax.Array
    emphasis: jax.Array
    gates: jax.Array
    self_gates: jax.Array
    self_level: int = struct.field(pytree_node=False)
    map_level: int = struct.field(pytree_node=False)

    def at(self, step: jax.Array | int) -> AttentionControl:
        """Return the control at a step; step 0 is the first one run."""
        return AttentionControl(
            self.mapping,
            self.share,
            self.emphasis,
            self.gates[step],
            self.self_gates[step],
            self.self_level,
            self.map_level,
        )

    def first(self, steps: int) -> "PromptControl":
        """Return the control for the first `steps` steps only."""
        return dataclasses.replace(self, gates=self.gates[:steps], self_gates=self.self_gates[:steps])

    @property
    def closed(self) -> "PromptControl":
        """A copy with all gates closed, which has no effect."""
        return dataclasses.replace(
            self, gates=jnp.zeros_like(self.gates), self_gates=jnp.zeros_like(self.self_gates)
        )


def open_control(pairs: int, length: int, steps: int, unet: UNetConfig) -> PromptControl:
    """Return a control that lends nothing, for P pairs, L tokens, and N steps."""
    return PromptControl(
        mapping=jnp.tile(jnp.eye(length), (pairs, 1, 1)),
        share=jnp.ones((pairs, length)),
        emphasis=jnp.ones((pairs, length)),
        gates=jnp.zeros((steps, pairs, length)),
        self_gates=jnp.zeros((steps, pairs)),
        self_level=SELF_LEVEL,
        map_level=unet.map_level,
    )


@dataclasses.dataclass(frozen=True)
class WordEdit:
    """How to edit attention, in terms of words.

    Attributes:
        form: "refine" aligns the prompts and edits what they share; "replace" substitutes word for word;
            "match" is EDICT's own alignment: equal runs of tokens, and different runs of equal length.
        cross: fraction of the steps during which attention to the text is edited, or (from, until).
        self_attention: fraction during which self-attention comes from the source, or (from, until).
        factors: factors on the attention to words of the target.
        spans: fractions of the steps for individual words of the target.
    """

    form: str = "refine"
    cross: Span = 0.4
    self_attention: Span = 0.6
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    spans: Mapping[str, Span] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        if self.form not in FORMS:
            raise UserError(f"The form of the edit is {shown(self.form)}; use one of {', '.join(FORMS)}.")


def prompt_control(
    edits: Sequence[WordEdit],
    tokenizer: CLIPTokenizer,
    prompts: Sequence[tuple[str, str]],
    *,
    steps: int,
    length: int,
    unet: UNetConfig,
) -> PromptControl:
    """Build the control that lets targets keep the content of their sources.

    Args:
        edits: one per pair.
        tokenizer: the model's tokenizer.
        prompts: P source–target pairs.
        steps: N.
        length: L.
        unet: the network's dimensions.

    Raises:
        UserError: the prompts cannot be aligned, or a word is not in them.
    """
    found = []
    for edit, (source, target) in zip(edits, prompts, strict=True):
        if edit.form == "replace":
            mapping, share = replacement(tokenizer, source, target, length), np.ones(length, np.float32)
        elif edit.form == "match":
            mapping, share = matching(tokenizer, source, target, length)
        else:
            mapping, share = refinement(tokenizer, source, target, length)
        found.append(
            (
                mapping,
                share,
                emphasis(tokenizer, target, edit.factors, length),
                cross_gates(tokenizer, target, edit.cross, edit.spans, steps=steps, length=length)[:-1],
                self_gates(edit.self_attention, steps=steps),
            )
        )
    stacked = [jnp.asarray(np.stack(each)) for each in zip(*found, strict=True)]
    aligned, shares, factors, gates, of_self = stacked
    return PromptControl(
        aligned, shares, factors, jnp.moveaxis(gates, 1, 0), of_self.T, SELF_LEVEL, unet.map_level
    )


@struct.dataclass
class LocalBlend:
    """Where an edit may change the image: wherever given words appear.

    Attributes:
        words: (2, P, L), 1 at the source and target words whose regions may change.
        threshold: (P,), a word is present where its map exceeds this fraction of the map's maximum.
        kept: (2, P, L), 1 at the words whose regions must not change.
        kept_threshold: (P,), the threshold for `kept`.
        first_step: () int32, the first step at which to blend.
    """

    words: jax.Array
    threshold: jax.Array
    kept: jax.Array
    kept_threshold: jax.Array
    first_step: jax.Array


# From the published code: the fraction of a map's maximum, and the fraction of steps before blending starts.
BLEND_THRESHOLD = 0.3
BLEND_FROM = 0.2


def no_blend(pairs: int, length: int, steps: int) -> LocalBlend:
    """Return a blend that never starts."""
    nothing, one = jnp.zeros((2, pairs, length)), jnp.ones(pairs)
    return LocalBlend(nothing, one, nothing, one, jnp.int32(steps))


def local_blend(
    tokenizer: CLIPTokenizer,
    prompts: Sequence[tuple[str, str]],
    words: Sequence[Sequence[str]],
    *,
    kept: Sequence[Sequence[str]] | None = None,
    threshold: float = BLEND_THRESHOLD,
    kept_threshold: float = BLEND_THRESHOLD,
    steps: int,
    length: int,
) -> LocalBlend:
    """Build a blend that confines an edit to where given words appear in the image.

    Args:
        tokenizer: the model's tokenizer.
        prompts: P source–target pairs.
        words: for each pair, what may change; a word counts in whichever of the two prompts contain it.
        kept: for each pair, what must not change; None for nothing.
        threshold: a word is present where its map exceeds this fraction of the map's maximum.
        kept_threshold: the same for `kept`.
        steps: N.
        length: L.

    Raises:
        UserError: a word is in neither prompt, or a threshold is out of range.
    """
    for value in (threshold, kept_threshold):
        if not 0 < value < 1:
            raise UserError(f"The threshold of the blend is {value}; give a number between 0 and 1.")

    def places(chosen: Sequence[Sequence[str]]) -> jax.Array:
        found = [_places(tokenizer, pair, own, length) for pair, own in zip(prompts, chosen, strict=True)]
        return jnp.asarray(np.stack(found, axis=1))

    pairs = len(prompts)
    return LocalBlend(
        words=places(words),
        threshold=jnp.full(pairs, threshold),
        kept=places(kept if kept is not None else [()] * pairs),
        kept_threshold=jnp.full(pairs, kept_threshold),
        first_step=jnp.int32(int(BLEND_FROM * steps)),
    )


def _places(
    tokenizer: CLIPTokenizer, prompts: tuple[str, str], words: Sequence[str], length: int
) -> np.ndarray:
    """(2, L) float32, 1 at the tokens of the given words in either prompt."""
    found = np.zeros((2, length), np.float32)
    for word in words:
        here = np.stack([find_words(tokenizer, prompt, word, length) for prompt in prompts])
        if not here.any():
            raise UserError(
                f"The words {word!r} are neither in the prompt {prompts[0]!r} nor in {prompts[1]!r}; name "
                "words that are."
            )
        found[here] = 1.0
    return found


def _mask(
    maps: jax.Array, words: jax.Array, threshold: jax.Array, shape: tuple[int, ...], *, spread: bool
) -> jax.Array:
    """(2, P, h, w) bool: where words appear in sources and targets, from maps (2, P, mh, mw, L)."""
    attention = jnp.einsum("spyxl,spl->spyx", maps, words.astype(maps.dtype))
    if spread:
        window = (_SPREAD, _SPREAD)
        pooled = nn.max_pool(attention.reshape(-1, *attention.shape[2:], 1), window, padding="SAME")
        attention = pooled.reshape(attention.shape)
    height, width = (edge // own for edge, own in zip(shape, attention.shape[2:], strict=True))
    attention = jnp.repeat(jnp.repeat(attention, height, axis=2), width, axis=3)
    largest = jnp.max(attention, axis=(2, 3), keepdims=True)
    return attention / jnp.maximum(largest, _SMALLEST_MAXIMUM) > threshold[:, None, None]


def blend_mask(blend: LocalBlend, maps: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Compute where the targets may differ from their sources.

    Args:
        blend: the words and thresholds.
        maps: (2, P, mh, mw, L), attention to the text of sources and targets, at any scale.
        shape: (h, w) of the latents, multiples of (mh, mw).

    Returns:
        (P, h, w) bool: where a word of either prompt allows changes and no word of either forbids them.
    """
    may = _mask(maps, blend.words, blend.threshold, shape, spread=True)
    must_not = _mask(maps, blend.kept, blend.kept_threshold, shape, spread=False)
    return jnp.any(may, axis=0) & ~jnp.any(must_not, axis=0)
