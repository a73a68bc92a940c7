import dataclasses

import jax

from ge3d_jax.core.random import Draws, normal
from ge3d_jax.diffusion.schedule import add_noise
from ge3d_jax.guidance.base import Loss, hand_over
from ge3d_jax.guidance.losses import LOSSES


@dataclasses.dataclass(frozen=True)
class OneStep(Loss):
    scale: float = 7.5  # a setting: --set=guidance.scale=5
    latest_time = 600

    def draw(self, keys, progress, shape):
        time = jax.random.randint(keys.times, (), 20, self.latest_time)
        return Draws(shared=time, per_view=normal(keys.noise, shape))

    def __call__(self, learned, seen, text, drawn, denoiser, progress):
        x = add_noise(denoiser.schedule, jax.lax.stop_gradient(seen.latents), drawn.per_view, drawn.shared)
        guided = denoiser.branches(x, drawn.shared, text, text.negative).guided(self.scale)
        return hand_over(seen, 0.1 * (guided - drawn.per_view))


LOSSES["one_step"] = OneStep
