"""The single entry point to the network: plain, guided, and Perp-Neg predictions, a few views at a time.

A loss names the texts that it wants predictions for. This module decides how they are batched, how many views
go through the network at a time, and what Perp-Neg adds. Tests can pass their own `predict`.

Symbols: ε_∅, prediction for the unconditional text; ε_y, for the prompt; ε_{y_j}, for a view to avoid, with
weight w_j; Δ = ε_y − ε_∅; s, the guidance scale. Equations 15 and 17 of arXiv 2412.05929.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.diffusion.networks.adapters import Adapter
from ge3d_jax.diffusion.networks.attention_control import AttentionControl
from ge3d_jax.diffusion.pipeline import predict_controlled, predict_epsilon
from ge3d_jax.diffusion.schedule import NoiseSchedule

# Keeps the projection finite where the text makes no difference.
_SMALLEST_SQUARED_NORM = 1e-6

# (model, x (B, h, w, C), t () or (B,), text (B, L, D)) → ε (B, h, w, C); takes `adapter`, too, if any.
Predict = Callable[..., jax.Array]
# (model, x, t, text, control) → ε and attention maps of the words: see `pipeline.predict_controlled`.
PredictControlled = Callable[..., tuple[jax.Array, jax.Array]]


@struct.dataclass
class ViewTexts:
    """The text embeddings for each of B views, with L tokens and D channels.

    Attributes:
        positive: (B, L, D), the prompt as seen from each view.
        avoided: (B, J, L, D), the views to avoid: two with Perp-Neg, none without.
        weights: (B, J), how strongly to avoid them, at most 0.
        negative: (L, D), the negative prompt.
        empty: (L, D), the empty prompt.
        plain: (L, D), the prompt without words for a view.
        source: texts for what the views show before they are edited, if given.
    """

    positive: jax.Array
    avoided: jax.Array
    weights: jax.Array
    negative: jax.Array
    empty: jax.Array
    plain: jax.Array
    source: "ViewTexts | None" = None


def classifier_free_epsilon(
    epsilon_empty: jax.Array, epsilon_positive: jax.Array, guidance_scale: float | jax.Array
) -> jax.Array:
    """ε_∅ + s·(ε_y − ε_∅) (equation 15)."""
    return epsilon_empty + guidance_scale * (epsilon_positive - epsilon_empty)


def perpendicular_part(difference: jax.Array, direction: jax.Array) -> jax.Array:
    """Remove from `difference` (B, ...) its component along `direction` (B, ...), sample by sample."""
    axes = tuple(range(1, direction.ndim))
    along = jnp.sum(difference * direction, axis=axes, keepdims=True)
    squared_norm = jnp.sum(direction**2, axis=axes, keepdims=True)
    return difference - along / jnp.maximum(squared_norm, _SMALLEST_SQUARED_NORM) * direction


def perpendicular_sum(differences: jax.Array, weights: jax.Array, direction: jax.Array) -> jax.Array:
    """Σ_j w_j·Δ_j^⊥: the term that Perp-Neg adds to the text direction (equation 17).

    Args:
        differences: (B, J, ...), Δ_j = ε_{y_j} − ε_∅.
        weights: (B, J), w_j.
        direction: (B, ...), Δ.

    Returns:
        (B, ...).
    """
    chex.assert_shape(differences, (*weights.shape, *direction.shape[1:]))

    def weighted(difference: jax.Array, weight: jax.Array) -> jax.Array:
        part = perpendicular_part(difference, direction)
        return weight.reshape(-1, *(1,) * (part.ndim - 1)) * part

    return jnp.sum(jax.vmap(weighted, in_axes=(1, 1))(differences, weights), axis=0)


@struct.dataclass
class Branches:
    """The predictions that guidance combines, all (B, h, w, C) unless noted.

    Attributes:
        unconditional: ε_∅, for the text that guidance leads away from.
        positive: ε_y, for the prompt.
        avoided: (B, J, h, w, C), ε_{y_j}; J is 0 without Perp-Neg.
        weights: (B, J), w_j.
        others: predictions for any further texts requested.
    """

    unconditional: jax.Array
    positive: jax.Array
    avoided: jax.Array
    weights: jax.Array
    others: tuple[jax.Array, ...]

    @property
    def has_perp_neg(self) -> bool:
        """Whether there are views to avoid."""
        return self.weights.shape[1] > 0

    @property
    def direction(self) -> jax.Array:
        """Δ = ε_y − ε_∅."""
        return self.positive - self.unconditional

    @property
    def away(self) -> jax.Array:
        """Σ_j w_j·Δ_j^⊥; only with Perp-Neg."""
        return perpendicular_sum(self.avoided - self.unconditional[:, None], self.weights, self.direction)

    def guided(self, scale: float | jax.Array) -> jax.Array:
        """ε_∅ + s·(Δ + Σ_j w_j·Δ_j^⊥), the guided prediction: equation 17, or 15 without Perp-Neg."""
        if not self.has_perp_neg:
            return classifier_free_epsilon(self.unconditional, self.positive, scale)
        return self.unconditional + scale * (self.direction + self.away)

    def guided_from_text(self, scale: float | jax.Array) -> jax.Array:
        """ε_y + s·(ε_y − ε_∅): guidance in threestudio's convention; with Perp-Neg, the same as `guided`."""
        return self.guided(scale if self.has_perp_neg else scale + 1.0)


@struct.dataclass
class Denoiser:
    """A diffusion model, with how to run it on all views of a device.

    Attributes:
        model: parameters and modules, passed to `predict`.
        schedule: the noise schedule.
        views_at_a_time: how many views go through the network at a time; must divide the number of views
            (static).
        predict: runs the network (static).
        predict_controlled: runs the network with attention control (static).
    """

    model: Any
    schedule: NoiseSchedule
    views_at_a_time: int = struct.field(pytree_node=False)
    predict: Predict = struct.field(pytree_node=False, default=predict_epsilon)
    predict_controlled: PredictControlled = struct.field(pytree_node=False, default=predict_controlled)

    def predict_for(
        self, x: jax.Array, t: jax.Array | int, *texts: jax.Array, adapter: Adapter | None = None
    ) -> tuple[jax.Array, ...]:
        """Predict the noise once for each text, with all texts of a view in one batch.

        Args:
            x: (B, h, w, C), noisy latents.
            t: () or (B,), their times.
            texts: (L, D) for all views, or (B, L, D).
            adapter: modifies the network; None for the network as it is.

        Returns:
            One ε (B, h, w, C) per text.
        """
        views, count = x.shape[0], len(texts)
        t = jnp.asarray(t)
        each = [text if text.ndim == 3 else jnp.broadcast_to(text, (views, *text.shape)) for text in texts]
        offset = None if adapter is None else adapter.time_offset

        def repeated(array: jax.Array) -> jax.Array:
            return jnp.concatenate([array] * count)

        def ask(
            x: jax.Array, t: jax.Array, texts: list[jax.Array], offset: jax.Array | None
        ) -> list[jax.Array]:
            changed = {}
            if adapter is not None:
                offsets = None if offset is None else repeated(offset)
                changed["adapter"] = dataclasses.replace(adapter, time_offset=offsets)
            times = t if t.ndim == 0 else repeated(t)
            answers = self.predict(self.model, repeated(x), times, jnp.concatenate(texts), **changed)
            return jnp.split(answers, count)

        if self.views_at_a_time == views:
            return tuple(ask(x, t, each, offset))
        parts = jax.tree.map(
            lambda array: array.reshape(-1, self.views_at_a_time, *array.shape[1:]),
            (x, jnp.broadcast_to(t, (views,)), each, offset),
        )
        # With a trainable adapter, a loop without recomputation would keep the activations of all its views;
        # without a gradient, this changes nothing.
        answers = jax.lax.map(jax.checkpoint(lambda part: ask(*part), prevent_cse=False), parts)
        return tuple(answer.reshape(x.shape) for answer in answers)

    def controlled_for(
        self, x: jax.Array, t: jax.Array | int, *texts: jax.Array, control: AttentionControl
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Predict the noise once for each text, with attention control for the last text; all in one batch.

        Args:
            x: (2P, h, w, C), noisy latents of P sources, then of their P targets.
            t: (), their time.
            texts: (2P, L, D) each.
            control: what the targets take from their sources.

        Returns:
            One ε (2P, h, w, C) per text, and attention maps of the words: see `pipeline.predict_controlled`.
        """
        batch = jnp.concatenate([x] * len(texts))
        answers, maps = self.predict_controlled(self.model, batch, t, jnp.concatenate(texts), control)
        return tuple(jnp.split(answers, len(texts))), maps

    def branches(
        self, x: jax.Array, t: jax.Array | int, text: ViewTexts, unconditional: jax.Array, *others: jax.Array
    ) -> Branches:
        """Compute all predictions that guidance combines, in one batch.

        Args:
            x: (B, h, w, C), noisy latents.
            t: () or (B,), their times.
            text: the texts for each view.
            unconditional: (L, D), the text that guidance leads away from.
            others: further texts, (L, D) or (B, L, D).
        """
        avoided = [text.avoided[:, j] for j in range(text.avoided.shape[1])]
        empty, positive, *rest = self.predict_for(x, t, unconditional, text.positive, *avoided, *others)
        views = rest[: len(avoided)]
        stacked = jnp.stack(views, axis=1) if views else jnp.zeros((x.shape[0], 0, *x.shape[1:]), x.dtype)
        return Branches(empty, positive, stacked, text.weights, tuple(rest[len(avoided) :]))
