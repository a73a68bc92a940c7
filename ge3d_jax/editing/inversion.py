"""The way up: pictures to noise along the ODE, in small steps without guidance (DDIM inversion).

Two conventions are in use. A step from t_{i+1} up to t_i needs the prediction at its start, but editing
programs ask the network as if it saw t_i already, "end"; GE3D and the equations ask at "start".
"""

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.schedule import ddim_step

ASKS = ("end", "start")


def check_asks(asks: str) -> None:
    """Refuse a convention that does not exist. Raises UserError."""
    if asks not in ASKS:
        raise UserError(f"The setting asks is {asks!r}; use one of {', '.join(ASKS)}.")


def steps_up(times: jax.Array, asks: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where each step up starts, where it ends, and the time the network is told, (N,) each."""
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
        text: (P, L, D), what they show.
        times: (N + 1,) int32, falling to 0.
        asks: of ASKS, the time that the network is told.

    Returns:
        (N + 1, P, h, w, C), z*: state k after k steps, the first the latents themselves.
    """
    return _invert(denoiser, latents, text, steps_up(times, asks))
