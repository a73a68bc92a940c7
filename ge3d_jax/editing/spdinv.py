"""SPDInv: inversion in which every state is consistent with the step that made it, then proximal NPI.

Each state z_t is moved to the fixed point of z_t = φ(z_{t−Δ}; ε(z_t, t, c)), where φ is the DDIM step up.
Source: Li et al., "Source Prompt Disentangled Inversion for Boosting Image Editability with Diffusion
Models", arXiv 2403.11105, and its public code.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.schedule import ddim_step
from ge3d_jax.editing.base import EditTask
from ge3d_jax.editing.descent import Plan, way_down
from ge3d_jax.editing.inner_loop import minimize
from ge3d_jax.editing.inversion import steps_up
from ge3d_jax.editing.npi import NPI

# AdamW's weight decay, PyTorch's default.
_DECAY = 0.01


@dataclasses.dataclass(frozen=True)
class SPDInv(NPI):
    """SPDInv.

    Attributes:
        rate: AdamW's learning rate.
        rounds: the maximum number of updates per inversion step.
        stop_below: the loss below which a step's search stops.
    """

    proximal: str = "l0"
    quantile: float = 0.7
    rate: float = 1e-3
    rounds: int = 25
    stop_below: float = 5e-6

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        check_at_least(rate=(self.rate, 0), rounds=(self.rounds, 1))

    def search(self, task: EditTask, denoiser: Denoiser) -> tuple[jax.Array, jax.Array]:
        """Return the inversion trajectory, (N + 1, P, h, w, C), and each update's loss, (N, rounds, P)."""
        steps = steps_up(self.times(denoiser), self.asks)
        return fixed_point_inversion(
            denoiser,
            task.latents,
            task.source,
            steps,
            rate=self.rate,
            rounds=self.rounds,
            stop_below=self.stop_below,
        )

    def plan(self, task: EditTask, denoiser: Denoiser) -> Plan:
        """Search for the trajectory, then plan; numbers: the losses before each update, (N, rounds, P)."""
        up, losses = self.search(task, denoiser)
        way = way_down(
            task,
            self.times(denoiser),
            up,
            scale=self.scale,
            unconditional=(task.source, task.source),
            proximal=self.proximal_guidance(),
        )
        return Plan(up, way, {"losses": losses})


@partial(jax.jit, static_argnames="rounds")
def fixed_point_inversion(
    denoiser: Denoiser,
    latents: jax.Array,
    text: jax.Array,
    steps: tuple[jax.Array, jax.Array, jax.Array],
    *,
    rate: float,
    rounds: int,
    stop_below: float,
) -> tuple[jax.Array, jax.Array]:
    """Invert latents (P, h, w, C), moving each state to the fixed point of its step with AdamW.

    Args:
        denoiser: the model, for P views.
        latents: (P, h, w, C).
        text: (P, L, D), embeddings of the source prompts.
        steps: from `steps_up`.
        rate, rounds, stop_below: see `minimize`.

    Returns:
        states (N + 1, P, h, w, C), and losses (N, rounds, P).
    """

    def step(x: jax.Array, given: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        start, end, asked = given

        def reached(seen: jax.Array) -> jax.Array:
            (epsilon,) = denoiser.predict_for(seen, asked, text)
            return ddim_step(denoiser.schedule, x, epsilon, start, end).astype(x.dtype)

        found, losses = minimize(
            lambda guess: jnp.mean((guess - reached(guess)) ** 2, axis=(1, 2, 3)),
            reached(x),
            rate=rate,
            rounds=rounds,
            stop_below=stop_below,
            decay=_DECAY,
        )
        return found, (found, losses)

    _, (states, losses) = jax.lax.scan(step, latents, steps)
    return jnp.concatenate([latents[None], states]), losses
