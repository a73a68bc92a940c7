"""Null-text inversion: a separate unconditional text for each step, so that guidance preserves the image.

Source: Mokady et al., "Null-text Inversion for Editing Real Images using Guided Diffusion Models", arXiv
2211.09794, algorithm 1, and its public code.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.editing.base import EditTask
from ge3d_jax.editing.descent import Plan, way_down
from ge3d_jax.editing.embedding_search import TextSearch


@dataclasses.dataclass(frozen=True)
class NTI(TextSearch):
    """Null-text inversion.

    Attributes:
        stop_below: the loss below which the search at the first step stops.
        stop_growth: how much this threshold grows with each further step.
    """

    stop_below: float = 1e-5
    stop_growth: float = 2e-5

    @property
    def stop_losses(self) -> jax.Array:
        """(N,), the loss threshold of each step."""
        return self.stop_below + self.stop_growth * jnp.arange(self.steps)

    def plan(self, task: EditTask, denoiser: Denoiser) -> Plan:
        """Search for the texts, then plan; numbers: the losses before each update, (N, rounds, P)."""
        up = self.up(task, denoiser)
        texts, losses = self.search(task, denoiser, up)
        way = way_down(task, self.times(denoiser), up, scale=self.scale, unconditional=(texts, texts))
        return Plan(up, way, {"losses": losses})
