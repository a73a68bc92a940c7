"""GE3D's endpoint only: compare the image with its edited version, not with the intermediate states.

| symbol | meaning |
|---|---|
| z | the latent |
| t_0 = 0 < … < t_n | GE3D's time nodes |
| x̂_{t_0} | the last state of GE3D's denoising trajectory |
| λ | `strength` |

g = λ·(z − x̂_{t_0}): GE3D with weight 1 at node 0 and 0 at all others, in every iteration. Source:
arXiv 2412.05929, section 8.5 and Figure 11.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.guidance.base import DrawKeys, Loss, Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.paths import squared_norms
from ge3d_jax.guidance.trajectories import Nodes


@dataclasses.dataclass(frozen=True)
class X0(Loss):
    """The paper's ablation without the intermediate nodes.

    Attributes:
        scale: s, the guidance scale.
        strength: λ, factor on the residual.
        noising_prompt: see `GE3D`.
        offset_noise: see `GE3D`.
        nodes: the time nodes.
    """

    # The run settings are GE3D's, which the run presets already contain.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "toybox": {
            "guidance.nodes.count": 5,
            "guidance.nodes.jump_max": (120, 60),
            "guidance.nodes.jump_min": (90, 40),
            "guidance.nodes.max_step": (600, 300),
            "guidance.scale": 5.0,
        },
    }

    scale: float = 7.5
    strength: float = 0.1
    noising_prompt: str = "negative"
    offset_noise: float = 0.1
    nodes: Nodes = Nodes()

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        # GE3D validates the settings that it shares with this loss.
        _ = self.ge3d

    @property
    def ge3d(self) -> GE3D:
        """The GE3D loss that computes the trajectories."""
        return GE3D(
            scale=self.scale,
            strength=self.strength,
            noising_prompt=self.noising_prompt,
            offset_noise=self.offset_noise,
            nodes=self.nodes,
        )

    @property
    def latest_time(self) -> int:
        """The largest timestep that a node may have."""
        return self.ge3d.latest_time

    @property
    def steps_to_target(self) -> float | None:
        """1/λ."""
        return 1.0 / self.strength if self.strength else None

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Draw the time nodes, shared by all views, and the noise of each view."""
        return self.ge3d.draw(keys, progress, shape)

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """Compute the residual λ·(z − x̂_{t_0}); metrics: loss ‖z − x̂_{t_0}‖² of each view, active_nodes."""
        z = jax.lax.stop_gradient(seen.latents)
        _, denoised = self.ge3d.trajectories(z, text, drawn, denoiser)
        difference = z - denoised[0]
        return hand_over(
            seen,
            self.strength * difference,
            loss=squared_norms(difference),
            active_nodes=drawn.shared["active"],
        )
