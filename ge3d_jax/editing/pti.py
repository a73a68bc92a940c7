"""Prompt tuning inversion: a separate conditional text for each step, mixed with the target to edit.

There is no public code. For what the paper leaves open, we use Adam at 0.005 and 10 updates per step.
Source: Dong et al., "Prompt Tuning Inversion for Text-Driven Image Editing Using Diffusion Models", arXiv
2305.04441, algorithms 1 and 2.
"""

import dataclasses
from typing import ClassVar

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.editing.base import EditTask
from ge3d_jax.editing.descent import Plan, way_down
from ge3d_jax.editing.embedding_search import TextSearch


@dataclasses.dataclass(frozen=True)
class PTI(TextSearch):
    """Prompt tuning inversion.

    Attributes:
        mixture: the target text's share of the text used for the edit, from 0 to 1.
    """

    searches_conditional: ClassVar[bool] = True

    rate: float = 0.005
    mixture: float = 0.8

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        if not 0 <= self.mixture <= 1:
            raise UserError(f"The setting mixture is {self.mixture}; give a number from 0 to 1.")

    def plan(self, task: EditTask, denoiser: Denoiser) -> Plan:
        """Search for the texts, then plan; numbers: the losses before each update, (N, rounds, P)."""
        up = self.up(task, denoiser)
        texts, losses = self.search(task, denoiser, up)
        mixed = (1.0 - self.mixture) * texts + self.mixture * task.target
        way = way_down(task, self.times(denoiser), up, scale=self.scale, conditional=(texts, mixed))
        return Plan(up, way, {"losses": losses})
