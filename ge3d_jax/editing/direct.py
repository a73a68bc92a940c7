"""Direct inversion: the source retraces its inversion trajectory exactly, and the target follows its prompt.

Nothing is optimized, and the source's reconstruction is the image itself; attention control ties the target
to it. Source: Ju et al., "Direct Inversion: Boosting Diffusion-based Editing with 3 Lines of Code" (PnP
Inversion), arXiv 2310.01506, and its public code.
"""

import dataclasses

from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.editing.base import EditTask
from ge3d_jax.editing.ddim import DDIM
from ge3d_jax.editing.descent import Plan, way_down


@dataclasses.dataclass(frozen=True)
class Direct(DDIM):
    """Direct inversion; same settings as DDIM."""

    def plan(self, task: EditTask, denoiser: Denoiser) -> Plan:
        """Compute everything that denoising needs."""
        up = self.up(task, denoiser)
        way = way_down(task, self.times(denoiser), up, scale=self.scale, holds_source=True)
        return Plan(up, way)
