"""Point-E's sampler: Heun's method with churn (Karras et al. 2022, arXiv 2206.00364, algorithm 2).

The networks were trained on whole times t, the sampler works with noise levels σ: x = x0 + σ·noise. A level
becomes the last time whose noise is not more, and x0 is computed with that time's own numbers rather than
with σ, as the published code does; both differences are visible.

| symbol | meaning |
|---|---|
| ᾱ_t | `alphas_cumprod[t]`, what is left of the signal at time t |
| σ_i, σ̂_i | level of step i, and after its churn: σ̂ = σ(1 + γ) |
| s | guidance scale |
| n | steps; 2n − 1 evaluations of the network |
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.errors import UserError

STEPS = 1024
SCHEDULES = ("cosine", "linear")
# What a network predicts: the noise ε, as the published ones do, or the velocity v = √ᾱ·ε − √(1 − ᾱ)·x0.
EPSILON, VELOCITY = "epsilon", "v_prediction"
_LARGEST_BETA = 0.999
_RHO = 7.0
_MOST_CHURN = 2.0**0.5 - 1.0

# Network inputs (R, N, 6) and whole times (R,) to the noise (R, N, 6), or to the velocity.
Predict = Callable[[jax.Array, jax.Array], jax.Array]


def betas(schedule: str, steps: int = STEPS) -> np.ndarray:
    """Point-E's β_t, float64 (steps,), of the schedule of that name."""
    if schedule == "cosine":

        def signal(share: np.ndarray) -> np.ndarray:
            return np.cos((share + 0.008) / 1.008 * np.pi / 2) ** 2

        edges = np.arange(steps + 1) / steps
        return np.minimum(1.0 - signal(edges[1:]) / signal(edges[:-1]), _LARGEST_BETA)
    if schedule == "linear":
        # The ends are given for 1000 steps.
        factor = 1000 / steps
        return np.linspace(1e-4 * factor, 0.02 * factor, steps)
    raise UserError(f"Point-E config: schedule is {schedule!r}; use one of {', '.join(SCHEDULES)}.")


def alphas_cumprod(schedule: str, steps: int = STEPS) -> np.ndarray:
    """ᾱ_t, float64 (steps,), of the schedule of that name."""
    return np.cumprod(1.0 - betas(schedule, steps))


def time_of(sigma: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """The whole times of noise levels.

    Args:
        sigma: levels of any shape, float64.
        signal: ᾱ_t (steps,), float64, falling.

    Returns:
        int32 of that shape: where ᾱ = 1/(σ² + 1) lies in the table, rounded down.
    """
    wanted = 1.0 / (np.asarray(sigma, np.float64) ** 2 + 1.0)
    # np.interp wants rising numbers; beyond the ends it gives the ends.
    places = np.interp(-wanted, -signal, np.arange(len(signal)))
    return np.floor(places).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Stage:
    """How one of the two networks is sampled; the defaults are the base network's.

    Attributes:
        schedule: which ᾱ_t the network was trained with, one of SCHEDULES.
        steps: n.
        sigma_min, sigma_max: the least noise level and the largest, which the sampling begins with.
        churn: how much noise is added on the way, over all steps.
        guidance: s; 0 and 1 mean none.
        prediction: what the network predicts, EPSILON or VELOCITY.
    """

    schedule: str = "cosine"
    steps: int = 64
    sigma_min: float = 1e-3
    sigma_max: float = 120.0
    churn: float = 3.0
    guidance: float = 3.0
    prediction: str = EPSILON

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        betas(self.schedule, 1)
        if self.prediction not in (EPSILON, VELOCITY):
            raise UserError(
                f"Point-E config: prediction is {self.prediction!r}; use {EPSILON} or {VELOCITY}."
            )
        if self.steps < 2:
            raise UserError(f"Point-E needs at least 2 steps, not {self.steps}; raise them.")
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(
                f"Point-E's noise levels are {self.sigma_min} to {self.sigma_max}; give two rising numbers "
                "above 0."
            )

    @property
    def is_velocity(self) -> bool:
        """Whether the network predicts the velocity."""
        return self.prediction == VELOCITY

    @property
    def is_guided(self) -> bool:
        """Whether each evaluation asks the network without its condition, too."""
        return self.guidance not in (0.0, 1.0)

    def sigmas(self) -> np.ndarray:
        """σ_0 … σ_n, float64 (n + 1,), the last 0."""
        ends = np.array([self.sigma_max, self.sigma_min]) ** (1 / _RHO)
        share = np.arange(self.steps) / (self.steps - 1)
        return np.append((ends[0] + share * (ends[1] - ends[0])) ** _RHO, 0.0)

    def churned(self) -> np.ndarray:
        """σ̂_0 … σ̂_{n−1}, float64 (n,)."""
        return self.sigmas()[:-1] * (1.0 + min(self.churn / self.steps, _MOST_CHURN))


UPSAMPLING = Stage(schedule="linear", sigma_max=160.0, churn=0.0, guidance=0.0)


@struct.dataclass
class Level:
    """A noise level and what its time says, each () or (n,).

    Attributes:
        sigma: σ.
        time: t, int32.
        of_seen, of_noise: √(1/ᾱ_t) and √(1/ᾱ_t − 1), from float64: ᾱ_t is nearly 1 at the end.
    """

    sigma: jax.Array
    time: jax.Array
    of_seen: jax.Array
    of_noise: jax.Array


@struct.dataclass
class Plan:
    """What a stage asks for at each step; every leaf has a leading axis of n.

    Attributes:
        first, second: the levels of a step's evaluations, after its churn and at its end.
        added: √(σ̂² − σ²), how much noise the churn adds.
        scale: (n,) s, the same in all steps.
        largest: (n,) σ_0, the same in all steps.
    """

    first: Level
    second: Level
    added: jax.Array
    scale: jax.Array
    largest: jax.Array


def levels(sigma: np.ndarray, signal: np.ndarray) -> Level:
    """What a denoiser needs to know of noise levels (n,) by the table ᾱ_t, both float64."""
    times = time_of(sigma, signal)
    inverse = 1.0 / signal[times]
    numbers = (sigma, np.sqrt(inverse), np.sqrt(inverse - 1.0))
    at, of_seen, of_noise = (jnp.asarray(each, jnp.float32) for each in numbers)
    return Level(at, jnp.asarray(times), of_seen, of_noise)


def make_plan(stage: Stage) -> Plan:
    """The plan of a stage, computed in float64 on the host: a time next to a whole one must not slip."""
    sigmas, churned = stage.sigmas(), stage.churned()
    signal = alphas_cumprod(stage.schedule)
    return Plan(
        first=levels(churned, signal),
        second=levels(sigmas[1:], signal),
        added=jnp.asarray(np.sqrt(np.maximum(churned**2 - sigmas[:-1] ** 2, 0.0)), jnp.float32),
        scale=jnp.full(stage.steps, stage.guidance, jnp.float32),
        largest=jnp.full(stage.steps, sigmas[0], jnp.float32),
    )


@struct.dataclass
class SampledWay:
    """Where the sampling came from.

    Attributes:
        states: (n, B, N, 6) x of each step after its churn.
        clean: (n, B, N, 6) x0 that its first evaluation gave.
        last: (B, N, 6) x after the last step.
    """

    states: jax.Array
    clean: jax.Array
    last: jax.Array


def denoise(
    predict: Predict,
    x: jax.Array,
    level: Level,
    *,
    scale: jax.Array | float,
    guided: bool,
    velocity: bool = False,
) -> jax.Array:
    """One evaluation: what the points were without noise.

    Args:
        predict: the network; guided it gets twice as many rows, with its condition, then without.
        x: (B, N, 6) points with noise of the level.
        level: of the noise.
        scale: s.
        guided: whether to guide (static).
        velocity: whether the network predicts the velocity rather than the noise (static).

    Returns:
        (B, N, 6) x0; within [-1, 1] unless guided.
    """
    seen = x / jnp.sqrt(level.sigma**2 + 1.0)
    seen = jnp.concatenate([seen, seen]) if guided else seen
    predicted = predict(seen, jnp.full(seen.shape[0], level.time))
    if velocity:
        clean = (seen - level.of_noise * predicted) / level.of_seen
    else:
        clean = level.of_seen * seen - level.of_noise * predicted
    clean = jnp.clip(clean, -1.0, 1.0)
    if not guided:
        return clean
    asked, dropped = jnp.split(clean, 2)
    return dropped + scale * (asked - dropped)


def sample(
    predict: Predict,
    plan: Plan,
    initial: jax.Array,
    churn_noise: jax.Array,
    *,
    guided: bool,
    velocity: bool = False,
) -> SampledWay:
    """Sample points; for use inside `jit`.

    Args:
        predict: see `denoise`.
        plan: of the stage.
        initial: (B, N, 6) standard normal noise to begin with.
        churn_noise: (n, B, N, 6) standard normal noise for each step.
        guided: whether the stage is (static).
        velocity: whether the network predicts the velocity (static).

    Returns:
        The way; its last `clean` is the result.
    """

    clean_of = partial(denoise, predict, guided=guided, velocity=velocity)

    def begin_step(x: jax.Array, step: Plan, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = x + step.added * noise
        clean = clean_of(x, step.first, scale=step.scale)
        return x, clean, (x - clean) / step.first.sigma

    def heun_step(x: jax.Array, inputs: tuple[Plan, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        step, noise = inputs
        x, clean, slope = begin_step(x, step, noise)
        length = step.second.sigma - step.first.sigma
        ahead = x + length * slope
        clean_ahead = clean_of(ahead, step.second, scale=step.scale)
        slope_ahead = (ahead - clean_ahead) / step.second.sigma
        return x + length * (slope + slope_ahead) / 2.0, (x, clean)

    steps = jax.tree.map(lambda leaf: leaf[:-1], (plan, churn_noise))
    last_plan, last_noise = jax.tree.map(lambda leaf: leaf[-1], (plan, churn_noise))
    x, (states, cleans) = jax.lax.scan(heun_step, plan.largest[0] * initial, steps)
    # The last step ends without noise, where there is nothing to ask.
    x, clean, slope = begin_step(x, last_plan, last_noise)
    return SampledWay(
        states=jnp.concatenate([states, x[None]]),
        clean=jnp.concatenate([cleans, clean[None]]),
        last=x + (last_plan.second.sigma - last_plan.first.sigma) * slope,
    )
