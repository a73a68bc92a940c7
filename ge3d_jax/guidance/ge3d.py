"""GE3D: the weights of the time nodes and the residual handed to the latent.

Symbols: k, iteration; T, number of iterations; n, nodes; ω_i(k), dynamic balancing coefficients (DBC).
Equations 8–11 of arXiv 2412.05929.
"""

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.core.random import normal


@struct.dataclass
class Residual:
    """What the loss says about the latent.

    Attributes:
        gradient: (B, h, w, C), to be handed to z: λ·Σ_i ω_i·(x_{t_i} − x̂_{t_i}).
        loss: scalar, Σ_i ω_i·‖x_{t_i} − x̂_{t_i}‖², averaged over the views.
        node_losses: (n,), the squared norms before weighting; 0 for inactive nodes.
    """

    gradient: jax.Array
    loss: jax.Array
    node_losses: jax.Array


def offset_noise(key: jax.Array, shape: tuple[int, ...], strength: float) -> jax.Array:
    """N(0, I) plus `strength`·N(0, 1) per channel, constant over the image and shared by the views.

    Args:
        shape: (B, h, w, C).
    """
    own_key, channel_key = jax.random.split(key)
    channels = normal(channel_key, (1, 1, 1, shape[-1]))
    return normal(own_key, shape) + strength * channels


def dbc_weights(
    iteration: jax.Array | int,
    iterations: int,
    count: int,
    active: jax.Array | int,
    *,
    width: float = 1 / 3,
) -> jax.Array:
    """ω_i(k): the coarsest node counts most at the start of a run, the finest at its end (equations 9, 10).

    Node i peaks at μ_i = T·(1 − i/(n−1)), with σ = width·T; normalised over the nodes i < `active`. The
    public code has σ = 1000 at any T and normalises over all n.

    Args:
        iteration: k, scalar.
        iterations: T.
        count: n.
        active: number of nodes in the sum.

    Returns:
        (n,) float32, of sum 1; all 0 when no node is active.
    """
    nodes = jnp.arange(count)
    peaks = 1.0 - nodes / max(count - 1, 1)
    progress = jnp.asarray(iteration, jnp.float32) / iterations
    logits = -0.5 * ((progress - peaks) / width) ** 2
    is_active = nodes < active
    # Softmax of the exponents: the far nodes of a narrow σ underflow to 0 instead of 0/0.
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
    """The gradient for z and the loss (equations 8, 11).

    Args:
        z: (B, h, w, C), the latent; it is the noising side of node 0.
        noised, denoised: (n + 1, B, h, w, C), the trajectories; the top states are equal and not used.
        weights: (n,), ω_i, 0 for inactive nodes.
        strength: λ.

    Returns:
        Residual; NaN and infinities are replaced by 0, in the gradient and in the loss.
    """
    chex.assert_equal_shape([noised, denoised])
    chex.assert_shape(noised, (weights.shape[0] + 1, *z.shape))
    sources = noised[:-1].at[0].set(z)
    differences = sources - denoised[:-1]
    # Replaced before weighting: 0·NaN of a node without weight would spoil the others.
    differences = jnp.nan_to_num(differences, nan=0.0, posinf=0.0, neginf=0.0)
    # In full: on a GPU, JAX would round the factors to 10 bits.
    exact = jax.lax.Precision.HIGHEST
    gradient = strength * jnp.tensordot(weights, differences, axes=1, precision=exact)
    node_losses = jnp.mean(jnp.sum(differences**2, axis=tuple(range(2, differences.ndim))), axis=1)
    return Residual(gradient, jnp.dot(weights, node_losses, precision=exact), node_losses)
