"""SCTD, segmented consistency: two states of one segment of the DDIM path lead to the same beginning of it.

| symbol | meaning |
|---|---|
| i, s | index of the later and of the earlier state, both in one segment |
| m | index at which the segment begins, m ≤ s < i |
| G(x, ε; m) | where one DDIM step with ε carries x: to index m |
| ε_∅, ε̂ | prediction for the empty prompt; guided prediction, leading away from the negative prompt |
| a, r | √ᾱ and √((1−ᾱ)/ᾱ) |

The path is cut into equal segments. Both states end their segment by one DDIM step to its beginning, the
earlier one with ε_∅, the later one with ε̂, and the residual is what lies between:
g = λ·(G(x_s, ε_∅(x_s); m) − G(x_i, ε̂(x_i); m)) = λ·a_m·(r_i − r_m)·(ε̂(x_i) − ε_∅(x_s)).
It is ISM with a weight that falls to 0 at the beginning of each segment instead of growing with the time.

Source: Zhu et al., "SegmentDreamer: Towards High-fidelity Text-to-3D Synthesis with Segmented Consistency
Trajectory Distillation", ICCV 2025. Its code was not at hand; what stands here is its definition in one
sentence: consistency within a segment of the DDIM path. Assumed: the beginning of the segment is where both
states have to meet; the earlier one goes there unguided, the later one guided; there are 5 segments of equal
length over all 1000 times; s = max(i − δ, m); the residual goes to z as with ISM, without a factor for the
way from z to x_s; and everything else (how i and δ are drawn, the inversion, λ, the scale, the settings of a
run) is LucidDreamer's, so that the two compare.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.schedule import NoiseSchedule
from ge3d_jax.guidance.ism import FIRST_TIME, ISM
from ge3d_jax.guidance.paths import noise_to_signal
from ge3d_jax.guidance.times import STEPS


@dataclasses.dataclass(frozen=True)
class SCTD(ISM):
    """SegmentDreamer's loss as described above; settings as ISM's.

    Attributes:
        segments: how many the path has; 1 leaves ISM with the weight a_0·(r_i − r_0).
    """

    segments: int = 5

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        super().__post_init__()
        if not 1 <= self.segments <= STEPS:
            raise UserError(
                f"The setting segments is {self.segments}; give a whole number from 1 to {STEPS}."
            )

    def segment_start(self, index: jax.Array) -> jax.Array:
        """m, the beginning of the segment that holds `index` (at least 1): the last one below it."""
        number = (index * self.segments - 1) // STEPS
        return number * STEPS // self.segments

    def earlier_index(self, index: jax.Array, delta: jax.Array) -> jax.Array:
        """The index s that belongs to i: not below the segment."""
        return jnp.maximum(index - delta, self.segment_start(index))

    def weight(self, schedule: NoiseSchedule, index: jax.Array) -> jax.Array:
        """The factor on ε̂ − ε_∅, (): a_m·(r_i − r_m)."""
        start = self.segment_start(index) + FIRST_TIME
        signal = jnp.sqrt(schedule.alphas_cumprod[start])
        later = noise_to_signal(schedule, index + FIRST_TIME)
        return signal * (later - noise_to_signal(schedule, start))
