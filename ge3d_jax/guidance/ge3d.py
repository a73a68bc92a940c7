"""GE3D: align the noising and the denoising trajectory at every node, from coarse nodes to fine ones.

Symbols: k, iteration; T, number of iterations; n, number of nodes; ω_i(k), dynamic balancing coefficients
(DBC); λ, `strength`. Equations 5–11 of arXiv 2412.05929.
"""

import dataclasses
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts, classifier_free_epsilon
from ge3d_jax.guidance.base import DrawKeys, Loss, Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.trajectories import (
    INVERSIONS,
    NOISING_PROMPTS,
    Nodes,
    denoising_trajectory,
    exact_denoising_trajectory,
    noising_text,
    noising_trajectory,
    offset_noise,
    sample_time_nodes,
)


@struct.dataclass
class Residual:
    """The loss and its gradient with respect to the latents.

    Attributes:
        gradient: (B, h, w, C), the gradient for z: λ·Σ_i ω_i·(x_{t_i} − x̂_{t_i}).
        losses: (B,), Σ_i ω_i·‖x_{t_i} − x̂_{t_i}‖² of each view.
    """

    gradient: jax.Array
    losses: jax.Array


def dbc_weights(
    iteration: jax.Array | int,
    iterations: int,
    count: int,
    active: jax.Array | int,
    *,
    width: float = 1 / 3,
) -> jax.Array:
    """Return ω_i(k), which favors the coarsest node early in a run and the finest late (equations 9, 10).

    Node i peaks at μ_i = T·(1 − i/(n−1)) with σ = width·T; the weights are normalized over the nodes
    i < `active`. The public code uses σ = 1000 for any T and normalizes over all n nodes.

    Args:
        iteration: k, scalar.
        iterations: T.
        count: n.
        active: number of nodes in the sum.

    Returns:
        (n,) float32, summing to 1; all 0 if no node is active.
    """
    nodes = jnp.arange(count)
    peaks = 1.0 - nodes / max(count - 1, 1)
    progress = jnp.asarray(iteration, jnp.float32) / iterations
    logits = -0.5 * ((progress - peaks) / width) ** 2
    is_active = nodes < active
    # Softmax of the exponents: with a narrow σ, distant nodes underflow to 0 instead of producing 0/0.
    weights = jax.nn.softmax(jnp.where(is_active, logits, -jnp.inf))
    return jnp.where(is_active, weights, 0.0)


def ge3d_residual(
    z: jax.Array,
    noised: jax.Array,
    denoised: jax.Array,
    weights: jax.Array,
    *,
    strength: float = 0.1,
) -> Residual:
    """Compute the gradient for z and the loss (equations 8, 11).

    Args:
        z: (B, h, w, C), the latents; they serve as the noising state at node 0.
        noised, denoised: (n + 1, B, h, w, C), the trajectories; their top states are equal and unused.
        weights: (n,), ω_i, 0 for inactive nodes.
        strength: λ.

    Returns:
        Residual.
    """
    chex.assert_equal_shape([noised, denoised])
    chex.assert_shape(noised, (weights.shape[0] + 1, *z.shape))
    sources = noised[:-1].at[0].set(z)
    differences = sources - denoised[:-1]
    # Full precision: on a GPU, JAX would otherwise round the factors to 10 bits.
    exact = jax.lax.Precision.HIGHEST
    gradient = strength * jnp.tensordot(weights, differences, axes=1, precision=exact)
    squares = jnp.sum(differences**2, axis=tuple(range(2, differences.ndim)))
    return Residual(gradient, jnp.dot(weights, squares, precision=exact))


def _joined_texts(text: ViewTexts, other: ViewTexts) -> ViewTexts:
    """Concatenate the texts of two batches of views, those of `other` last."""
    joined = {
        name: jnp.concatenate([getattr(text, name), getattr(other, name)])
        for name in ("positive", "avoided", "weights")
    }
    return dataclasses.replace(text, source=None, **joined)


@dataclasses.dataclass(frozen=True)
class GE3D(Loss):
    """The loss of the GE3D paper.

    Attributes:
        scale: s, the guidance scale.
        strength: λ, factor on the residual.
        noising_prompt: the prompt ∅ of the noising trajectory: "negative", as in the public code, or "empty",
            as in the paper. If an edit describes what the views show, that description takes its place,
            except with "delta".
        inversion: how the denoising trajectory compensates for inversion error. "plain": not at all. "npi":
            guidance points away from the ∅ of the noising trajectory instead of the negative prompt.
            "direct": subtract, at every node, the error with which a denoising trajectory guided toward that
            ∅ would miss the noising trajectory. Both are from arXiv 2305.16807 and 2310.01506.
            "direct_if_several": "direct" in iterations with several jumps, "plain" in those with one.
            "delta", for edits only: subtract, at every node, the residual that a plain iteration gives for
            the unedited source under its own prompt, as in Delta Denoising Score, arXiv 2304.07090.
        offset_noise: strength of the noise component that is constant over the image in each channel.
        dbc: whether to balance the nodes over the run; if not, each has weight 1 (the paper's ablation).
        dbc_width: σ of the balancing weights, as a fraction of the iterations.
        nodes: the time nodes.
    """

    uses_source: ClassVar[bool] = True

    scale: float = 7.5
    strength: float = 0.1
    noising_prompt: str = "negative"
    inversion: str = "plain"
    offset_noise: float = 0.1
    dbc: bool = True
    dbc_width: float = 1 / 3
    nodes: Nodes = Nodes()

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        if self.dbc_width <= 0:
            raise UserError(
                f"The setting dbc_width is {self.dbc_width}; give a fraction of the iterations above 0."
            )
        if self.noising_prompt not in NOISING_PROMPTS:
            raise UserError(
                f"The setting noising_prompt is {shown(self.noising_prompt)}; use one of "
                f"{', '.join(NOISING_PROMPTS)}."
            )
        if self.inversion not in INVERSIONS:
            raise UserError(
                f"The setting inversion is {shown(self.inversion)}; use one of {', '.join(INVERSIONS)}."
            )

    @property
    def needs_source_views(self) -> bool:
        """True for the inversion "delta"."""
        return self.inversion == "delta"

    @property
    def latest_time(self) -> int:
        """The largest timestep that a node may have."""
        return max(self.nodes.max_step) - 1

    @property
    def steps_to_target(self) -> float | None:
        """1/(λ·Σ_i ω_i), which leads to the mean of the nodes' targets."""
        weights = 1 if self.dbc else self.nodes.count
        return 1.0 / (self.strength * weights) if self.strength else None

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Draw the time nodes, shared by all views, and the noise of each view."""
        node_times, active = sample_time_nodes(keys.times, progress, self.nodes)
        noise = offset_noise(keys.noise, shape, self.offset_noise)
        return Draws(shared={"node_times": node_times, "active": active}, per_view={"noise": noise})

    def trajectories(
        self,
        z: jax.Array,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        source: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Compute the states x_{t_i} and x̂_{t_i} at the nodes, (n + 1, B, h, w, C) each.

        Args:
            z: (B, h, w, C), the latents.
            text: the text embeddings of each view; for "delta", including those of the source.
            drawn: the result of `draw`.
            denoiser: the model.
            source: (B, h, w, C), the latents of the source; for "delta" only.

        Raises:
            UserError: "delta" without a source.
        """
        if self.needs_source_views:
            if source is None or text.source is None:
                raise UserError(
                    "The inversion 'delta' compares with views of a source, but this run has none; choose "
                    "another inversion."
                )
            return self._delta_trajectories((z, source), (text, text.source), drawn, denoiser)
        without = noising_text(text, self.noising_prompt) if text.source is None else text.source.positive
        nodes = (drawn.shared["node_times"], drawn.shared["active"])

        def plain(x: jax.Array, t: jax.Array) -> jax.Array:
            (epsilon,) = denoiser.predict_for(x, t, without)
            return epsilon

        def guided(x: jax.Array, t: jax.Array) -> jax.Array:
            away_from = without if self.inversion == "npi" else text.negative
            return denoiser.branches(x, t, text, away_from).guided(self.scale)

        def guided_source(x: jax.Array, t: jax.Array) -> jax.Array:
            if text.source is not None:
                return denoiser.branches(x, t, text.source, text.negative).guided(self.scale)
            negative, source = denoiser.predict_for(x, t, text.negative, without)
            return classifier_free_epsilon(negative, source, self.scale)

        noised = noising_trajectory(plain, denoiser.schedule, z, drawn.per_view["noise"], *nodes)
        if self.inversion in ("direct", "direct_if_several"):
            corrects = self.inversion == "direct" or drawn.shared["active"] > 1
            return noised, exact_denoising_trajectory(
                guided, guided_source, denoiser.schedule, noised, *nodes, corrects=corrects
            )
        return noised, denoising_trajectory(guided, denoiser.schedule, noised[-1], *nodes)

    def _delta_trajectories(
        self,
        latents: tuple[jax.Array, jax.Array],
        texts: tuple[ViewTexts, ViewTexts],
        drawn: Draws,
        denoiser: Denoiser,
    ) -> tuple[jax.Array, jax.Array]:
        """Return x_{t_i}, and x̂_{t_i} + (x − x̂)_{t_i} of the source; equal if views and prompts are.

        Args:
            latents: of the views and of the source's views.
            texts: likewise.
            drawn, denoiser: see `trajectories`.
        """
        nodes = (drawn.shared["node_times"], drawn.shared["active"])
        # One batch, so that both are compiled once and rounded identically.
        both = _joined_texts(*texts)
        without = noising_text(both, self.noising_prompt)
        noise = drawn.per_view["noise"]

        def up(x: jax.Array, t: jax.Array) -> jax.Array:
            (epsilon,) = denoiser.predict_for(x, t, without)
            return epsilon

        def down(x: jax.Array, t: jax.Array) -> jax.Array:
            return denoiser.branches(x, t, both, both.negative).guided(self.scale)

        begun = jnp.concatenate(latents), jnp.concatenate([noise, noise])
        noised = noising_trajectory(up, denoiser.schedule, *begun, *nodes)
        denoised = denoising_trajectory(down, denoiser.schedule, noised[-1], *nodes)
        (states, source_states), (edited, source_edited) = (
            jnp.split(trajectory, 2, axis=1) for trajectory in (noised, denoised)
        )
        # As in `ge3d_residual`, the latents themselves are node 0 of the noising trajectory.
        states, source_states = (
            trajectory.at[0].set(z) for trajectory, z in zip((states, source_states), latents, strict=True)
        )
        # In this order, equal terms cancel without rounding errors, which Adam would turn into full steps.
        return states, states - ((states - edited) - (source_states - source_edited))

    def weights(self, progress: Progress, active: jax.Array) -> jax.Array:
        """Return ω_i, (n,), 0 for inactive nodes."""
        if not self.dbc:
            return (jnp.arange(self.nodes.count) < active).astype(jnp.float32)
        return dbc_weights(
            progress.iteration, progress.iterations, self.nodes.count, active, width=self.dbc_width
        )

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """Compute the residual λ·Σ_i ω_i·(x_{t_i} − x̂_{t_i}); metrics: loss of each view, active_nodes."""
        z = jax.lax.stop_gradient(seen.latents)
        noised, denoised = self.trajectories(z, text, drawn, denoiser, seen.source)
        active = drawn.shared["active"]
        residual = ge3d_residual(z, noised, denoised, self.weights(progress, active), strength=self.strength)
        return hand_over(seen, residual.gradient, loss=residual.losses, active_nodes=active)
