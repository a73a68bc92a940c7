"""What the losses share that walk along the DDIM path: steps that may be idle, and exact whole numbers.

Symbols: k, iteration; T, number of iterations; ᾱ_t, share of signal at time t; r_t = √((1−ᾱ_t)/ᾱ_t).
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

# (index of the step, x (B, h, w, C), ε (B, h, w, C), its start (), its end ()) → x (B, h, w, C)
Move = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


@struct.dataclass
class Path:
    """Where a walk came by, in n steps of which the first `active` were made.

    Attributes:
        times: (n + 1,) int32; beyond the active steps they mean nothing.
        states: (n + 1, B, h, w, C), the last one reached repeats.
        predictions: (n, B, h, w, C), what was asked at the start of each step; the last one repeats.
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
        """The prediction of the last step that was made, (B, h, w, C)."""
        return self.predictions[-1]


def ddim_move(schedule: NoiseSchedule) -> Move:
    """The step without noise."""

    def move(_: jax.Array, x: jax.Array, epsilon: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        return ddim_step(schedule, x, epsilon, start, end)

    return move


def walk(predict: Predict, move: Move, x: jax.Array, times: jax.Array, active: jax.Array | int) -> Path:
    """Carry a latent from one time to the next; idle steps cost no pass through the network.

    Args:
        predict: asked at the start of each step.
        move: makes the step.
        x: (B, h, w, C), the state at the first time.
        times: (n + 1,) int32.
        active: how many steps are made.
    """
    active = jnp.asarray(active, jnp.int32)

    def body(
        carry: tuple[jax.Array, jax.Array], step: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        index, start, end = step

        def made() -> tuple[jax.Array, jax.Array]:
            epsilon = predict(carry[0], start).astype(x.dtype)
            return move(index, carry[0], epsilon, start, end).astype(x.dtype), epsilon

        # A scalar predicate, which XLA keeps a branch.
        carry = jax.lax.cond(index < active, made, lambda: carry)
        return carry, carry

    steps = (jnp.arange(times.shape[0] - 1), times[:-1], times[1:])
    _, (states, predictions) = jax.lax.scan(body, (x, jnp.zeros_like(x)), steps)
    return Path(times, jnp.concatenate([x[None], states]), predictions, active)


def noise_to_signal(schedule: NoiseSchedule, t: jax.Array | int) -> jax.Array:
    """r_t = √((1−ᾱ_t)/ᾱ_t), shaped as `t`."""
    alphas = schedule.alphas_cumprod[jnp.asarray(t)]
    return jnp.sqrt((1.0 - alphas) / alphas)


def squared_norms(values: jax.Array) -> jax.Array:
    """‖·‖² of each view, (B,), of values (B, ...)."""
    return jnp.sum(values**2, axis=tuple(range(1, values.ndim)))


def whole_number(rule: Callable[[np.ndarray], np.ndarray], progress: Progress) -> jax.Array:
    """What a rule gives in this iteration, () int32.

    The rule sees 0 … T at once, in NumPy's float64: what it rounds up or down goes the same way as in the
    published programs, which the float32 of a compiled step cannot promise.

    Args:
        rule: iterations (T + 1,) float64 → whole numbers (T + 1,).
        progress: how far the run is.
    """
    table = rule(np.arange(progress.iterations + 1, dtype=np.float64)).astype(np.int32)
    return at(table, progress)


def warm_up_left(iterations: np.ndarray, warm_up: int) -> np.ndarray:
    """ρ = 1 − min(k/W, 1) of each iteration: what is left of a warm-up of W iterations."""
    return 1.0 - np.minimum(iterations / warm_up, 1.0)


def check_latest_time(latest: int, remedy: str) -> None:
    """Refuse settings that ask beyond the schedule's last time. Raises UserError.

    Args:
        latest: the latest time that the network may be asked at.
        remedy: which settings lower it.
    """
    if latest >= STEPS:
        raise UserError(
            f"The settings of this loss reach time {latest}, but the last one there is is "
            f"{STEPS - 1}; lower {remedy}."
        )
