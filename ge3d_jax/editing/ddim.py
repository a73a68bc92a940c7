"""DDIM inversion: up without guidance, down with it; what the others improve on.

Guidance leads the source away from its own path, too, so that pictures change where nobody asked for it.
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
        asks: the time that the network is told on the way up, "end" or "start" of the step.
    """

    asks: str = "end"

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        super().__post_init__()
        check_asks(self.asks)

    def up(self, task: EditTask, denoiser: Denoiser) -> jax.Array:
        """z*, (N + 1, P, h, w, C)."""
        return invert(denoiser, task.latents, task.source, self.times(denoiser), asks=self.asks)

    def plan(self, task: EditTask, denoiser: Denoiser) -> Plan:
        """What there is to know before the way down."""
        up = self.up(task, denoiser)
        return Plan(up, way_down(task, self.times(denoiser), up, scale=self.scale))

    def __call__(self, task: EditTask, denoiser: Denoiser, key: jax.Array) -> Edited:
        """Edit; nothing is drawn. Numbers: the plan's."""
        return edited(task, denoiser, self.plan(task, denoiser))
