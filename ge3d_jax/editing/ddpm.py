"""Edit-friendly DDPM inversion: the noise that leads exactly down a way of independent states.

Each x_t gets noise of its own; z_t = (x_{t−Δ} − μ_t)/√v_t is what DDPM would have had to draw between them.
Drawn again it gives the picture back, and with another text an edit that keeps its layout.

Source: Huberman-Spiegelglas et al., "An Edit Friendly DDPM Noise Space: Inversion and Manipulations", arXiv
2304.06140, and its public code.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import normal
from ge3d_jax.diffusion.denoiser import Denoiser, classifier_free_epsilon
from ge3d_jax.diffusion.schedule import add_noise
from ge3d_jax.editing.base import Edited, EditTask, Method
from ge3d_jax.editing.descent import Plan, edited, posterior_mean, posterior_variance, way_down


@dataclasses.dataclass(frozen=True)
class DDPM(Method):
    """Edit-friendly DDPM inversion.

    Attributes:
        skip: share of the steps that are not made, counted from the top; the less, the more may change.
        source_scale: s of the source, also where the noise is found.
    """

    steps: int = 50
    first_time: int = 1
    scale: float = 7.5
    skip: float = 0.36
    source_scale: float = 3.5

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        super().__post_init__()
        if self.first_time < 1:
            raise UserError(
                f"The setting first_time is {self.first_time}, where nothing is drawn; give at least 1."
            )
        if not 0 <= self.skip < 1 or self.made < 1:
            raise UserError(
                f"The setting skip is {self.skip}, which leaves none of {self.steps} steps; give a share "
                "from 0 to below 1."
            )

    @property
    def made(self) -> int:
        """How many steps down are made."""
        return self.steps - round(self.skip * self.steps)

    def noise(self, key: jax.Array, task: EditTask) -> jax.Array:
        """(N, P, h, w, C), of each time from the earliest on."""
        return normal(key, (self.steps, *task.latents.shape))

    def edit(self, task: EditTask, denoiser: Denoiser, noise: jax.Array) -> Edited:
        """Edit with given noise, (N, P, h, w, C), of each time from the earliest on."""
        times = self.times(denoiser)
        states, drawn = noise_space(
            denoiser, task.latents, task.source, task.empties, times, noise, scale=self.source_scale
        )
        up, below = states[: self.made + 1], times[self.steps - self.made :]
        way = dataclasses.replace(
            way_down(task, below, up, scale=self.scale),
            scales=jnp.asarray([self.source_scale, self.scale], up.dtype),
            eta=jnp.asarray(1.0, up.dtype),
            noise=drawn[self.steps - self.made :],
        )
        task = dataclasses.replace(task, control=task.control.first(self.made))
        return edited(task, denoiser, Plan(up, way))

    def __call__(self, task: EditTask, denoiser: Denoiser, key: jax.Array) -> Edited:
        """Edit; the way up is drawn."""
        return self.edit(task, denoiser, self.noise(key, task))


@jax.jit
def noise_space(
    denoiser: Denoiser,
    latents: jax.Array,
    text: jax.Array,
    empty: jax.Array,
    times: jax.Array,
    noise: jax.Array,
    *,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """States of independent noise, and what DDPM draws between them.

    Args:
        denoiser: the model, for P views.
        latents: (P, h, w, C).
        text, empty: (P, L, D), what they show, and the empty prompt.
        times: (N + 1,) int32, falling.
        noise: (N, P, h, w, C), of each time from the earliest on.
        scale: s.

    Returns:
        states (N + 1, P, h, w, C), from the latents up; z (N, P, h, w, C), from the top down. The last is 0:
        nothing is drawn in the step to the picture.
    """
    schedule = denoiser.schedule
    noisy = jax.vmap(lambda n, t: add_noise(schedule, latents, n, t))(noise, times[-2::-1])
    states = jnp.concatenate([latents[None], noisy])

    def step(_: None, given: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
        x, below, now, then = given
        without, wanted = denoiser.predict_for(x, now, empty, text)
        epsilon = classifier_free_epsilon(without, wanted, scale)
        mean = posterior_mean(schedule, x, epsilon, now, then)
        return None, (below - mean) / jnp.sqrt(posterior_variance(schedule, now, then))

    _, drawn = jax.lax.scan(step, None, (states[:0:-1], states[-2::-1], times[:-1], times[1:]))
    return states, drawn.at[-1].set(0.0)
