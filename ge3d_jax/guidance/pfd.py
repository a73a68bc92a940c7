"""PFD: score distillation via inversion whose clean picture is the end of a whole DDIM path, not of one step.

| symbol | meaning |
|---|---|
| t, x_t, N, B | as in `sdi.py`: time, the noised latent that inversion finds, numbers of a latent, views |
| ε̂(s) | guided prediction with scale s |
| τ_j | t − j·`path_step`, the times above 0 at which the path down asks the network |

From x_t the guided prediction leads down, x_{τ_{j+1}} = DDIM(x_{τ_j}, ε̂(x_{τ_j}), τ_j → τ_{j+1}); x̂_0 is the
clean latent that the last of them implies, and g = (z − x̂_0)/(N·B).

Source: arXiv 2605.09071. Its code was not at hand; what stands here is its definition in one sentence:
SDI's residual with x̂_0 from the full DDIM path instead of one step. Assumed: the inversion, t, d, the scales
and the settings of a run are SDI's; the way down is deterministic; its times are spaced as the inversion's,
100 apart, counted from t. With one time (`path_step` at least t) this is SDI exactly.
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
    """SDI with the full path down; settings as SDI's.

    Attributes:
        path_step: between the times of the way down.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": SDI.presets["paper"],
        # With steps this long an iteration takes no more time than SDI's.
        "toybox": {
            **SDI.presets["toybox"],
            "guidance.inversion_step": 300,
            "guidance.path_step": 300,
        },
    }

    path_step: int = 100

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        super().__post_init__()
        check_at_least(path_step=(self.path_step, 1))

    @property
    def path_steps(self) -> int:
        """The most times that a way down may have."""
        return math.ceil(self.latest_time / self.path_step)

    def path_down(self, x: jax.Array, t: jax.Array, text: ViewTexts, denoiser: Denoiser) -> Path:
        """From x_t through all τ_j; its last prediction is the one at the last of them."""

        def predict(x: jax.Array, t: jax.Array) -> jax.Array:
            return denoiser.branches(x, t, text, text.negative).guided_from_text(self.scale)

        times = t - self.path_step * jnp.arange(self.path_steps + 1)
        times = jnp.maximum(times, 0).astype(jnp.int32)
        return walk(predict, ddim_move(denoiser.schedule), x, times, -(-t // self.path_step))

    def edited(self, x: jax.Array, t: jax.Array, text: ViewTexts, denoiser: Denoiser) -> jax.Array:
        """x̂_0, (B, h, w, C), where the text leads x_t along the path."""
        path = self.path_down(x, t, text, denoiser)
        last = path.active - 1
        return predict_x0(denoiser.schedule, path.states[last], path.last_prediction, path.times[last])
