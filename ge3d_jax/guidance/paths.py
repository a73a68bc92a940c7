"""Shared code of the losses that follow a DDIM path: steps that may be skipped, and exact integer rounding.

Symbols: k, iteration; T, number of iterations; ᾱ_t, cumulative signal level at timestep t;
r_t = √((1−ᾱ_t)/ᾱ_t).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.schedule import NoiseSchedule, ddim_step
from ge3d_jax.guidance.annealing import STEPS, at
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.trajectories import Predict

# (step index, x (B, h, w, C), ε (B, h, w, C), start (), end ()) → x (B, h, w, C)
Move = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


@struct.dataclass
class Path:
    """The result of `walk`: n steps, of which only the first `active` were taken.

    Attributes:
        times: (n + 1,) int32; values beyond the active steps are meaningless.
        states: (n + 1, B, h, w, C); the last state reached repeats.
        predictions: (n, B, h, w, C), the prediction at the start of each step; the last one repeats.
        active: () int32.
    """

    times: jax.Array
    states: jax.Array
    predictions: jax.Array
    active: jax.Array

    @property
    def end(self) -> jax.Array:
        """The state after the last step, (B, h, w, C)."""
        return self.states[-1]

    @property
    def last_prediction(self) -> jax.Array:
        """The prediction of the last active step, (B, h, w, C)."""
        return self.predictions[-1]


def ddim_move(schedule: NoiseSchedule) -> Move:
    """Return the deterministic DDIM step."""

    def move(_: jax.Array, x: jax.Array, epsilon: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        return ddim_step(schedule, x, epsilon, start, end)

    return move


def walk(predict: Predict, move: Move, x: jax.Array, times: jax.Array, active: jax.Array | int) -> Path:
    """Carry a latent from one timestep to the next; inactive steps cost no network evaluation.

    Args:
        predict: evaluated at the start of each step.
        move: takes the step.
        x: (B, h, w, C), the state at the first timestep.
        times: (n + 1,) int32.
        active: number of steps to take.
    """
    active = jnp.asarray(active, jnp.int32)

    def body(
        carry: tuple[jax.Array, jax.Array], step: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        index, start, end = step

        def made() -> tuple[jax.Array, jax.Array]:
            epsilon = predict(carry[0], start).astype(x.dtype)
            return move(index, carry[0], epsilon, start, end).astype(x.dtype), epsilon

        # With a scalar predicate, XLA keeps this a branch.
        carry = jax.lax.cond(index < active, made, lambda: carry)
        return carry, carry

    steps = (jnp.arange(times.shape[0] - 1), times[:-1], times[1:])
    _, (states, predictions) = jax.lax.scan(body, (x, jnp.zeros_like(x)), steps)
    return Path(times, jnp.concatenate([x[None], states]), predictions, active)


def noise_to_signal(schedule: NoiseSchedule, t: jax.Array | int) -> jax.Array:
    """Return r_t = √((1−ᾱ_t)/ᾱ_t), in the shape of `t`."""
    alphas = schedule.alphas_cumprod[jnp.asarray(t)]
    return jnp.sqrt((1.0 - alphas) / alphas)


def squared_norms(values: jax.Array) -> jax.Array:
    """Return the squared norm per view, (B,), of values (B, ...)."""
    return jnp.sum(values**2, axis=tuple(range(1, values.ndim)))


def whole_number(rule: Callable[[np.ndarray], np.ndarray], progress: Progress) -> jax.Array:
    """Evaluate an integer-valued rule for this iteration, () int32.

    The rule is applied to 0 … T at once, in NumPy's float64, so that it rounds exactly as the published
    programs do; the float32 of a compiled step could not guarantee that.

    Args:
        rule: iterations (T + 1,) float64 → whole numbers (T + 1,).
        progress: of the run.
    """
    table = rule(np.arange(progress.iterations + 1, dtype=np.float64)).astype(np.int32)
    return at(table, progress)


def warm_up_left(iterations: np.ndarray, warm_up: int) -> np.ndarray:
    """Return ρ = 1 − min(k/W, 1) for each iteration: the remaining fraction of a W-iteration warm-up."""
    return 1.0 - np.minimum(iterations / warm_up, 1.0)


def check_latest_time(latest: int, remedy: str) -> None:
    """Reject settings that go beyond the schedule's last timestep. Raises UserError.

    Args:
        latest: the largest timestep at which the network may be queried.
        remedy: the settings that lower it.
    """
    if latest >= STEPS:
        raise UserError(
            f"The settings of this loss reach timestep {latest}, but the schedule ends at "
            f"{STEPS - 1}; lower {remedy}."
        )
