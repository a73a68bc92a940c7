"""Direct inversion: the source stays on its way up exactly, and the target is left to the text.

Nothing is optimized, and the source's reconstruction is the picture itself; attention control ties the target
to it. Source: Ju et al., "Direct Inversion: Boosting Diffusion-based Editing with 3 Lines of Code" (PnP
Inversion), arXiv 2310.01506, and its public code.
"""

import dataclasses

import jax

from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.editing.base import Edited, EditTask
from ge3d_jax.editing.ddim import DDIM
from ge3d_jax.editing.descent import edited, way_down


@dataclasses.dataclass(frozen=True)
class Direct(DDIM):
    """Direct inversion; settings as for DDIM."""

    def __call__(self, task: EditTask, denoiser: Denoiser, key: jax.Array) -> Edited:
        """Edit; nothing is drawn."""
        up = self.up(task, denoiser)
        way = way_down(task, self.times(denoiser), up, scale=self.scale, holds_source=True)
        return edited(task, denoiser, way, up)
