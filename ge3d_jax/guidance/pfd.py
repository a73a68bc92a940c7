"""PFD: score distillation via inversion (SDI) with the clean image from a full DDIM path instead of one step.

| symbol | meaning |
|---|---|
| t, x_t, N, B | as in `sdi.py`: timestep, noised latent found by inversion, entries per latent, views |
| ε̂(s) | guided prediction with scale s |
| τ_j | t − j·`path_step`, the timesteps above 0 at which the denoising path evaluates the network |

Starting at x_t, the guided prediction denoises: x_{τ_{j+1}} = DDIM(x_{τ_j}, ε̂(x_{τ_j}), τ_j → τ_{j+1}). x̂_0
is the clean latent that the last prediction implies, and g = (z − x̂_0)/(N·B).

Source: arXiv 2605.09071. Its code was not available; this implements its one-sentence definition: SDI's
residual with x̂_0 from the full DDIM path instead of one step. Assumptions: the inversion, t, d, the scales,
and the run settings are SDI's; the denoising path is deterministic; its timesteps are spaced like the
inversion's, 100 apart, counted from t. With a single timestep (`path_step` at least t), PFD is exactly SDI.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import predict_x0
from ge3d_jax.guidance.paths import Path, ddim_move, walk
from ge3d_jax.guidance.sdi import SDI


@dataclasses.dataclass(frozen=True)
class PFD(SDI):
    """SDI with the full denoising path; the settings are those of SDI.

    Attributes:
        path_step: spacing of the timesteps of the denoising path.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": SDI.presets["paper"],
        # With steps this long, an iteration takes no longer than SDI's.
        "toybox": {
            **SDI.presets["toybox"],
            "guidance.inversion_step": 300,
            "guidance.path_step": 300,
        },
    }

    path_step: int = 100

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        check_at_least(path_step=(self.path_step, 1))

    @property
    def path_steps(self) -> int:
        """The maximum number of timesteps of a denoising path."""
        return math.ceil(self.latest_time / self.path_step)

    def path_down(self, x: jax.Array, t: jax.Array, text: ViewTexts, denoiser: Denoiser) -> Path:
        """Denoise from x_t through all τ_j; the last prediction is the one at the last τ_j."""

        def predict(x: jax.Array, t: jax.Array) -> jax.Array:
            return denoiser.branches(x, t, text, text.negative).guided_from_text(self.scale)

        times = t - self.path_step * jnp.arange(self.path_steps + 1)
        times = jnp.maximum(times, 0).astype(jnp.int32)
        return walk(predict, ddim_move(denoiser.schedule), x, times, -(-t // self.path_step))

    def edited(self, x: jax.Array, t: jax.Array, text: ViewTexts, denoiser: Denoiser) -> jax.Array:
        """Return x̂_0, (B, h, w, C), to which the text leads x_t along the path."""
        path = self.path_down(x, t, text, denoiser)
        last = path.active - 1
        return predict_x0(denoiser.schedule, path.states[last], path.last_prediction, path.times[last])
