"""DDIM inversion: invert without guidance, then denoise with it. The baseline that other methods improve on.

Guidance pushes the source off its inversion trajectory, too, so images also change where they should not.
Source: Mokady et al., "Null-text Inversion", arXiv 2211.09794, section 3, and Hertz et al., arXiv 2208.01626.
"""

import dataclasses

import jax

from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.editing.base import Edited, EditTask, Method
from ge3d_jax.editing.descent import Plan, edited, way_down
from ge3d_jax.editing.inversion import check_asks, invert


@dataclasses.dataclass(frozen=True)
class DDIM(Method):
    """DDIM inversion.

    Attributes:
        asks: the time passed to the network during inversion: the "end" or the "start" of the step.
    """

    asks: str = "end"

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        check_asks(self.asks)

    def up(self, task: EditTask, denoiser: Denoiser) -> jax.Array:
        """Return the inversion trajectory z*, (N + 1, P, h, w, C)."""
        return invert(denoiser, task.latents, task.source, self.times(denoiser), asks=self.asks)

    def plan(self, task: EditTask, denoiser: Denoiser) -> Plan:
        """Compute everything that denoising needs."""
        up = self.up(task, denoiser)
        return Plan(up, way_down(task, self.times(denoiser), up, scale=self.scale))

    def __call__(self, task: EditTask, denoiser: Denoiser, key: jax.Array) -> Edited:
        """Edit the images; this method is deterministic. Numbers: those of the plan."""
        return edited(task, denoiser, self.plan(task, denoiser))
