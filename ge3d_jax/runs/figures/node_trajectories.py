"""Both trajectories of an iteration, and the network's clean predictions along them.

Symbols: n nodes; B views; x_{t_i} and x̂_{t_i}, states of the noising and of the denoising trajectory.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.pipeline import with_attention_chunk
from ge3d_jax.diffusion.schedule import NoiseSchedule
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted
from ge3d_jax.training.state import TrainState


@dataclass(frozen=True)
class Trajectories:
    """Both trajectories of an iteration.

    Attributes:
        images: (B, H, W, 3), the rendered images that they start from.
        latents: (B, h, w, C), z, the noising state of node 0.
        noised, denoised: (n + 1, B, h, w, C), x_{t_i} and x̂_{t_i}; the top is repeated beyond the active
            nodes.
        times: (n + 1,), t_i.
        active: number of jumps.
        weights: (n,), ω_i.
    """

    images: np.ndarray
    latents: np.ndarray
    noised: np.ndarray
    denoised: np.ndarray
    times: np.ndarray
    active: int
    weights: np.ndarray

    @property
    def differences(self) -> np.ndarray:
        """x_{t_i} − x̂_{t_i}, (n, B, h, w, C); 0 from the top node on."""
        return np.concatenate([self.latents[None], self.noised[1:-1]]) - self.denoised[:-1]


def loss_of(config: Config) -> GE3D:
    """The loss of a run with nodes. Raises UserError if the run has another loss."""
    if not isinstance(config.guidance, GE3D):
        raise UserError("Only runs with the loss ge3d have nodes; leave the setting guidance out.")
    return config.guidance


@partial(jax.jit, static_argnames="task")
def _trajectories(
    scene: Any, iteration: jax.Array, context: Prompted, drawn: Draws, *, task: Distillation
) -> tuple[jax.Array, ...]:
    views = drawn.per_view["azimuth"].shape[0]
    model = with_attention_chunk(context.model, task.config.attention_chunk)
    progress = Progress(iteration, task.iterations)
    seen = task.see(scene, task.scene.perturbations(scene, views), context, drawn, progress)
    drawn_by_loss = Draws(drawn.shared["loss"], drawn.per_view["loss"])
    noised, denoised = loss_of(task.config).trajectories(
        seen.latents, seen.text, drawn_by_loss, task.denoiser(model, views)
    )
    needed, overflow = jnp.max(seen.renders.needed), jnp.max(seen.renders.overflow)
    return seen.images, seen.latents, noised, denoised, needed, overflow


def find_trajectories(task: Distillation, state: TrainState, context: Prompted, drawn: Draws) -> Trajectories:
    """Compute the trajectories of the iteration that follows a state.

    Args:
        task: the run's task.
        state: the run's state, which is left unchanged.
        context: the model and the prompt.
        drawn: the output of `task.draw`, possibly with other cameras.
    """
    loss, active = loss_of(task.config), drawn.shared["loss"]["active"]
    while True:
        *found, needed, overflow = _trajectories(state.scene, state.iteration, context, drawn, task=task)
        if int(overflow) == 0:
            break
        task = task.grown(int(needed))
    images, latents, noised, denoised = map(np.asarray, found)
    weights = loss.weights(Progress(state.iteration, task.iterations), active)
    return Trajectories(
        images=images,
        latents=latents,
        noised=noised,
        denoised=denoised,
        times=np.asarray(drawn.shared["loss"]["node_times"]),
        active=int(active),
        weights=np.asarray(weights),
    )


def clean_predictions(schedule: NoiseSchedule, states: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Recover the clean prediction used by each step of a trajectory.

    The two states of a DDIM step, x_s = √ᾱ_s·x̂_0 + √(1−ᾱ_s)·ε and likewise x_t, share x̂_0 and ε: the
    network's predictions at the state that the step started from.

    Args:
        schedule: the model's noise schedule.
        states: (n + 1, ...), states of either trajectory, all active.
        times: (n + 1,), times of the states, ascending.

    Returns:
        Clean latents (n, ...) of the steps between states i and i + 1, in either direction.
    """
    alphas = np.asarray(schedule.alphas_cumprod, np.float64)[times].reshape(-1, *(1,) * (states.ndim - 1))
    signal, noise = np.sqrt(alphas), np.sqrt(1.0 - alphas)
    clean = noise[1:] * states[:-1] - noise[:-1] * states[1:]
    return clean / (signal[:-1] * noise[1:] - signal[1:] * noise[:-1])
