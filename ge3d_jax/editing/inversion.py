"""DDIM inversion: carry images up to noise along the ODE, in small steps without guidance.

Two conventions are in use. A step from t_{i+1} up to t_i should evaluate the network at its start, but the
published editing code evaluates it as if it were already at t_i ("end"). GE3D and the equations use "start".
"""

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.schedule import ddim_step

ASKS = ("end", "start")


def check_asks(asks: str) -> None:
    """Reject an unknown convention. Raises UserError."""
    if asks not in ASKS:
        raise UserError(f"The setting asks is {shown(asks)}; use one of {', '.join(ASKS)}.")


def steps_up(times: jax.Array, asks: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return, for each step up, its start, its end, and the time passed to the network, (N,) each."""
    start, end = times[:0:-1], times[-2::-1]
    return start, end, end if asks == "end" else start


@jax.jit
def _invert(
    denoiser: Denoiser, latents: jax.Array, text: jax.Array, steps: tuple[jax.Array, jax.Array, jax.Array]
) -> jax.Array:
    def body(x: jax.Array, step: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        start, end, asked = step
        (epsilon,) = denoiser.predict_for(x, asked, text)
        moved = ddim_step(denoiser.schedule, x, epsilon, start, end).astype(x.dtype)
        return moved, moved

    _, states = jax.lax.scan(body, latents, steps)
    return jnp.concatenate([latents[None], states])


def invert(
    denoiser: Denoiser, latents: jax.Array, text: jax.Array, times: jax.Array, *, asks: str = "end"
) -> jax.Array:
    """Carry latents up along the ODE.

    Args:
        denoiser: the model, for P views.
        latents: (P, h, w, C).
        text: (P, L, D), embeddings of the source prompts.
        times: (N + 1,) int32, decreasing to 0.
        asks: one of ASKS, which end of a step determines the time passed to the network.

    Returns:
        (N + 1, P, h, w, C), z*: entry k is the state after k steps; entry 0 is the latents themselves.
    """
    return _invert(denoiser, latents, text, steps_up(times, asks))
