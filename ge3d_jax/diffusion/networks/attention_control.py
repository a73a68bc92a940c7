"""Lending one prompt's attention to another: what Prompt-to-Prompt changes inside the UNet.

A batch ends in P sources and their P targets, in the same order; anything before them is left alone. In
cross-attention to the text, a target's probabilities are mixed with those of its source, word by word; in
self-attention, a target can use its source's probabilities. Nothing else changes, and with closed gates
nothing changes at all, bit for bit. All arrays are traced: one compilation serves every pair of prompts and
every step.

| symbol | meaning | shape |
|---|---|---|
| A_src, A_tgt | attention probabilities of source and target | (P, heads, pixels, L) |
| M | `mapping`: which source token corresponds to which target token | (P, L, L) |
| α | `share`: the source's share of a target token's attention | (P, L) |
| e | `emphasis`: factor on a target token's attention | (P, L) |
| g | `gate`: whether a target token is edited at this step | (P, L) |

A = g·((A_src·M)·α + A_tgt·(1−α))·e + (1−g)·A_tgt, without renormalization. Source: Hertz et al.,
"Prompt-to-Prompt Image Editing with Cross Attention Control", arXiv 2208.01626, and its public code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

# (query (B, Q, H, D), key (B, K, H, D), value (B, K, H, D)) → (B, Q, H, D)
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def attention_probabilities(query: jax.Array, key: jax.Array) -> jax.Array:
    """softmax(query · keyᵀ / √D) in float32 or higher, (B, H, Q, K), for (B, Q, H, D) and (B, K, H, D)."""
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key, preferred_element_type=dtype)
    return jax.nn.softmax(logits, axis=-1)


@struct.dataclass
class AttentionControl:
    """What the targets of a batch take from their sources at one step; see the module's table for symbols.

    Attributes:
        mapping: M, (P, L, L), source tokens in rows.
        share: α, (P, L).
        emphasis: e, (P, L).
        gate: g, (P, L).
        self_gate: (P,), 1 where a target takes its self-attention from its source.
        self_level: the first level whose self-attention is controlled; at level l, feature maps have 1/2^l of
            the latent's edge (static).
        map_level: the level whose attention to the text is returned (static).
    """

    mapping: jax.Array
    share: jax.Array
    emphasis: jax.Array
    gate: jax.Array
    self_gate: jax.Array
    self_level: int = struct.field(pytree_node=False)
    map_level: int = struct.field(pytree_node=False)

    def at_level(self, level: int, *, returns_map: bool) -> "BlockControl":
        """Return the control for the transformers of a level; `returns_map` if its maps are wanted here."""
        return BlockControl(
            self,
            shares_self=level >= self.self_level,
            returns_map=returns_map and level == self.map_level,
        )


@struct.dataclass
class BlockControl:
    """Attention control as a transformer block sees it.

    Attributes:
        control: the control of the whole network.
        shares_self: whether self-attention is controlled (static).
        returns_map: whether attention to the text is returned (static).
    """

    control: AttentionControl
    shares_self: bool = struct.field(pytree_node=False)
    returns_map: bool = struct.field(pytree_node=False)

    def attend_itself(
        self, attend: Attend, query: jax.Array, key: jax.Array, value: jax.Array
    ) -> tuple[jax.Array, None]:
        """Self-attention in which a target with an open gate uses its source's queries and keys.

        They yield the source's probabilities without materializing them, so any `attend` will do.
        """
        if self.shares_self:
            query, key = self._lent(query), self._lent(key)
        return attend(query, key, value), None

    def _lent(self, rows: jax.Array) -> jax.Array:
        """Replace the targets' rows of a batch with those of their sources where the gate is open."""
        gate = self.control.self_gate
        pairs = len(gate)
        source, target = rows[-2 * pairs : -pairs], rows[-pairs:]
        is_open = jnp.reshape(gate > 0, (pairs, *(1,) * (rows.ndim - 1)))
        return jnp.concatenate([rows[:-pairs], jnp.where(is_open, source, target)])

    def attend_text(
        self, attend: Attend, query: jax.Array, key: jax.Array, value: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attention to the text, edited for the targets.

        Returns:
            (B, Q, H, D), and, if requested, the edited probabilities averaged over the heads, (2P, Q, L),
            sources first.
        """
        mixed = attend(query, key, value)
        pairs = len(self.control.gate)
        probabilities = attention_probabilities(query[-2 * pairs :], key[-2 * pairs :])
        source, target = probabilities[:pairs], probabilities[pairs:]
        change = edited_attention(self.control, source, target) - target
        # Only the change bypasses `attend`: where gates are closed, it is exactly 0.
        change = self.control.gate[:, None, None, :] * change
        moved = jnp.einsum(
            "bhqk,bkhd->bqhd",
            change.astype(value.dtype),
            value[-pairs:],
            preferred_element_type=change.dtype,
        )
        mixed = jnp.concatenate([mixed[:-pairs], mixed[-pairs:] + moved.astype(mixed.dtype)])
        if not self.returns_map:
            return mixed, None
        return mixed, jnp.mean(jnp.concatenate([source, target + change]), axis=1)


def edited_attention(control: AttentionControl, source: jax.Array, target: jax.Array) -> jax.Array:
    """((A_src·M)·α + A_tgt·(1−α))·e, (P, H, Q, L), from probabilities of that shape."""
    lent = jnp.einsum("bhqs,bst->bhqt", source, control.mapping.astype(source.dtype))
    share, emphasis = (array[:, None, None, :] for array in (control.share, control.emphasis))
    return (lent * share + target * (1.0 - share)) * emphasis
