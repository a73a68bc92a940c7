"""Step-by-step search for texts that take an image back down its inversion trajectory: shared by NTI and PTI.

Symbols: ∅_i, c_i, the unconditional and the conditional text of step i; z*, the latents along the inversion
trajectory; z̄, the latents along the denoising trajectory; s, guidance scale.
"""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser, classifier_free_epsilon
from ge3d_jax.diffusion.schedule import ddim_step
from ge3d_jax.editing.base import EditTask
from ge3d_jax.editing.ddim import DDIM
from ge3d_jax.editing.inner_loop import minimize


@dataclasses.dataclass(frozen=True)
class TextSearch(DDIM):
    """Base class of the methods that search for texts.

    Attributes:
        rate: Adam's learning rate at the first step; it decays to half of that at the last.
        rounds: the maximum number of updates per step.
    """

    # Whether to search for the conditional text instead of the unconditional one.
    searches_conditional: ClassVar[bool] = False

    rate: float = 0.01
    rounds: int = 10

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        check_at_least(rate=(self.rate, 0), rounds=(self.rounds, 1))

    @property
    def rates(self) -> jax.Array:
        """(N,), the learning rate of each step; with 50 steps, rate·(1 − i/100)."""
        return self.rate * (1.0 - jnp.arange(self.steps) / (2 * self.steps))

    @property
    def stop_losses(self) -> jax.Array:
        """(N,), the loss below which the search at each step stops; 0 to run all updates."""
        return jnp.zeros(self.steps)

    def search(self, task: EditTask, denoiser: Denoiser, up: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the texts found, ∅_i or c_i (N, P, L, D), and the losses (N, rounds, P)."""
        conditional = self.searches_conditional
        start, other = (task.source, task.empties) if conditional else (task.empties, task.source)
        texts, losses, _ = search_texts(
            denoiser,
            self.times(denoiser),
            up,
            start,
            other,
            scale=self.scale,
            rates=self.rates,
            stop_below=self.stop_losses,
            rounds=self.rounds,
            searches_conditional=conditional,
        )
        return texts, losses


@partial(jax.jit, static_argnames=("rounds", "searches_conditional"))
def search_texts(
    denoiser: Denoiser,
    times: jax.Array,
    up: jax.Array,
    start: jax.Array,
    other: jax.Array,
    *,
    scale: float,
    rates: jax.Array,
    stop_below: jax.Array,
    rounds: int,
    searches_conditional: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Find one of the two texts of each step so that a guided step lands on the inversion trajectory.

    Step i starts from the text found at step i − 1, minimizes mean (DDIM(z̄; text) − z*)² with Adam, and then
    takes the step.

    Args:
        denoiser: the model, for P views.
        times: (N + 1,) int32, decreasing.
        up: (N + 1, P, h, w, C), z*.
        start: (P, L, D), the initial text.
        other: (P, L, D), the text of the other prediction.
        scale: s.
        rates: (N,), Adam's learning rate at each step.
        stop_below: (N,), the loss below which an image's search stops.
        rounds: the maximum number of updates per step.
        searches_conditional: whether to search for the conditional text instead of the unconditional one.

    Returns:
        texts (N, P, L, D); losses (N, rounds, P), NaN where there was no update; states (N, P, h, w, C), z̄
        after each step.
    """
    schedule = denoiser.schedule

    def step(
        carried: tuple[jax.Array, jax.Array], given: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
        x, text = carried
        now, then, kept, rate, enough = given
        (fixed,) = denoiser.predict_for(x, now, other)

        def moved(text: jax.Array) -> jax.Array:
            (asked,) = denoiser.predict_for(x, now, text)
            empty, wanted = (fixed, asked) if searches_conditional else (asked, fixed)
            epsilon = classifier_free_epsilon(empty, wanted, scale)
            return ddim_step(schedule, x, epsilon, now, then).astype(x.dtype)

        text, losses = minimize(
            lambda text: jnp.mean((moved(text) - kept) ** 2, axis=(1, 2, 3)),
            text,
            rate=rate,
            rounds=rounds,
            stop_below=enough,
        )
        x = moved(text)
        return (x, text), (text, losses, x)

    given = (times[:-1], times[1:], up[-2::-1], rates, stop_below)
    _, (texts, losses, states) = jax.lax.scan(step, (up[-1], start), given)
    return texts, losses, states
