"""Edit-friendly DDPM inversion: the noise that leads exactly through a sequence of independent noisy states.

Each x_t gets its own independent noise; z_t = (x_{t−Δ} − μ_t)/√v_t is what DDPM would have had to draw
between two states. Reusing it reproduces the image; with another prompt, it gives an edit of the same layout.

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
        skip: fraction of the steps to skip, counted from the top; the smaller, the more may change.
        source_scale: s of the source, also used to extract the noise.
    """

    steps: int = 50
    first_time: int = 1
    scale: float = 7.5
    skip: float = 0.36
    source_scale: float = 3.5

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        if self.first_time < 1:
            raise UserError(
                f"The setting first_time is {self.first_time}, where no noise is drawn; give at least 1."
            )
        if not 0 <= self.skip < 1 or self.made < 1:
            raise UserError(
                f"The setting skip is {self.skip}, which leaves none of {self.steps} steps; give a share "
                "from 0 to below 1."
            )

    @property
    def made(self) -> int:
        """The number of denoising steps run."""
        return self.steps - round(self.skip * self.steps)

    def noise(self, key: jax.Array, task: EditTask) -> jax.Array:
        """Draw the noise for each time, smallest time first: (N, P, h, w, C)."""
        return normal(key, (self.steps, *task.latents.shape))

    def edit(self, task: EditTask, denoiser: Denoiser, noise: jax.Array) -> Edited:
        """Edit with given noise, (N, P, h, w, C), smallest time first."""
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
        """Edit the images; the noise of the states is drawn with `key`."""
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
    """Return states with independent noise, and what DDPM would draw between them.

    Args:
        denoiser: the model, for P views.
        latents: (P, h, w, C).
        text, empty: (P, L, D), the source prompts and the empty prompt.
        times: (N + 1,) int32, decreasing.
        noise: (N, P, h, w, C), one per time, smallest time first.
        scale: s.

    Returns:
        states (N + 1, P, h, w, C), from the latents up; z (N, P, h, w, C), from the top down. The last z is
        0: the step to the image draws no noise.
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
