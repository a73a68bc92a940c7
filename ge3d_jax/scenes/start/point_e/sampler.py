"""Point-E's sampler: Heun's method with churn (Karras et al. 2022, arXiv 2206.00364, algorithm 2).

The networks were trained on integer times t, while the sampler works with noise levels σ: x = x0 + σ·noise.
As in the published code, a level is mapped to the last time whose noise does not exceed it, and x0 is
computed with that time's coefficients rather than with σ; both differences are visible.

| symbol | meaning |
|---|---|
| ᾱ_t | `alphas_cumprod[t]`, the signal remaining at time t |
| σ_i, σ̂_i | noise level of step i before and after its churn: σ̂ = σ(1 + γ) |
| s | guidance scale |
| n | number of steps, with 2n − 1 evaluations of the network |
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.errors import UserError, shown

STEPS = 1024
SCHEDULES = ("cosine", "linear")
# What a network predicts: the noise ε, as in the published models, or the velocity v = √ᾱ·ε − √(1 − ᾱ)·x0.
EPSILON, VELOCITY = "epsilon", "v_prediction"
_LARGEST_BETA = 0.999
_RHO = 7.0
_MOST_CHURN = 2.0**0.5 - 1.0

# Maps network inputs (R, N, 6) and integer times (R,) to the noise (R, N, 6), or to the velocity.
Predict = Callable[[jax.Array, jax.Array], jax.Array]


def betas(schedule: str, steps: int = STEPS) -> np.ndarray:
    """Point-E's β_t, float64 (steps,), of the named schedule."""
    if schedule == "cosine":

        def signal(share: np.ndarray) -> np.ndarray:
            return np.cos((share + 0.008) / 1.008 * np.pi / 2) ** 2

        edges = np.arange(steps + 1) / steps
        return np.minimum(1.0 - signal(edges[1:]) / signal(edges[:-1]), _LARGEST_BETA)
    if schedule == "linear":
        # The endpoints are defined for 1000 steps.
        factor = 1000 / steps
        return np.linspace(1e-4 * factor, 0.02 * factor, steps)
    raise UserError(f"Point-E config: schedule is {shown(schedule)}; use one of {', '.join(SCHEDULES)}.")


def alphas_cumprod(schedule: str, steps: int = STEPS) -> np.ndarray:
    """ᾱ_t, float64 (steps,), of the named schedule."""
    return np.cumprod(1.0 - betas(schedule, steps))


def time_of(sigma: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Map noise levels to integer times.

    Args:
        sigma: noise levels of any shape, float64.
        signal: ᾱ_t (steps,), float64, decreasing.

    Returns:
        int32 of the same shape: the position of ᾱ = 1/(σ² + 1) in the table, rounded down.
    """
    wanted = 1.0 / (np.asarray(sigma, np.float64) ** 2 + 1.0)
    # np.interp needs increasing numbers, and clamps to the ends.
    places = np.interp(-wanted, -signal, np.arange(len(signal)))
    return np.floor(places).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Sampling parameters of a network; the defaults are those of the base network.

    Attributes:
        schedule: the noise schedule the network was trained with, one of SCHEDULES.
        steps: n, number of steps.
        sigma_min, sigma_max: lowest and highest noise level; sampling starts at the highest.
        churn: amount of noise added during sampling, over all steps.
        guidance: s; 0 and 1 mean no guidance.
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
        """Check the values. Raises UserError."""
        betas(self.schedule, 1)
        if self.prediction not in (EPSILON, VELOCITY):
            raise UserError(
                f"Point-E config: prediction is {shown(self.prediction)}; use {EPSILON} or {VELOCITY}."
            )
        if self.steps < 2:
            raise UserError(f"Point-E needs at least 2 steps, not {self.steps}; use more steps.")
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(
                f"Point-E's noise levels are {self.sigma_min} to {self.sigma_max}; give two increasing "
                "numbers above 0."
            )

    @property
    def is_guided(self) -> bool:
        """Whether each evaluation also runs the network without its condition."""
        return self.guidance not in (0.0, 1.0)

    def sigmas(self) -> np.ndarray:
        """σ_0 … σ_n, float64 (n + 1,); the last is 0."""
        ends = np.array([self.sigma_max, self.sigma_min]) ** (1 / _RHO)
        share = np.arange(self.steps) / (self.steps - 1)
        return np.append((ends[0] + share * (ends[1] - ends[0])) ** _RHO, 0.0)

    def churned(self) -> np.ndarray:
        """σ̂_0 … σ̂_{n−1}, float64 (n,)."""
        return self.sigmas()[:-1] * (1.0 + min(self.churn / self.steps, _MOST_CHURN))


UPSAMPLING = Stage(schedule="linear", sigma_max=160.0, churn=0.0, guidance=0.0)


@struct.dataclass
class Level:
    """A noise level, with its time and that time's coefficients, each () or (n,).

    Attributes:
        sigma: σ.
        time: t, int32.
        of_seen, of_predicted: x0 is of_seen times what the network sees minus of_predicted times what it
            predicts: √(1/ᾱ_t) and √(1/ᾱ_t − 1) for the noise, √ᾱ_t and √(1 − ᾱ_t) for the velocity. They are
            computed in float64 because ᾱ_t is nearly 1 at the end.
    """

    sigma: jax.Array
    time: jax.Array
    of_seen: jax.Array
    of_predicted: jax.Array


@struct.dataclass
class Plan:
    """The coefficients of each step of a stage; every leaf has a leading axis of size n.

    Attributes:
        first, second: levels of a step's two evaluations, after its churn and at its end.
        added: √(σ̂² − σ²), standard deviation of the noise that the churn adds.
        scale: (n,) s, the same in all steps.
        largest: (n,) σ_0, the same in all steps.
    """

    first: Level
    second: Level
    added: jax.Array
    scale: jax.Array
    largest: jax.Array


def levels(sigma: np.ndarray, signal: np.ndarray, prediction: str = EPSILON) -> Level:
    """Compute the denoiser's coefficients for noise levels (n,) from the table ᾱ_t, both float64."""
    times = time_of(sigma, signal)
    kept, inverse = signal[times], 1.0 / signal[times]
    if prediction == VELOCITY:
        coefficients = np.sqrt(kept), np.sqrt(1.0 - kept)
    else:
        coefficients = np.sqrt(inverse), np.sqrt(inverse - 1.0)
    at, of_seen, of_predicted = (jnp.asarray(each, jnp.float32) for each in (sigma, *coefficients))
    return Level(at, jnp.asarray(times), of_seen, of_predicted)


def make_plan(stage: Stage) -> Plan:
    """Make the plan of a stage, in float64 on the host so that times near an integer round correctly."""
    sigmas, churned = stage.sigmas(), stage.churned()
    signal = alphas_cumprod(stage.schedule)
    return Plan(
        first=levels(churned, signal, stage.prediction),
        second=levels(sigmas[1:], signal, stage.prediction),
        added=jnp.asarray(np.sqrt(np.maximum(churned**2 - sigmas[:-1] ** 2, 0.0)), jnp.float32),
        scale=jnp.full(stage.steps, stage.guidance, jnp.float32),
        largest=jnp.full(stage.steps, sigmas[0], jnp.float32),
    )


@struct.dataclass
class SampledWay:
    """The trajectory of a sampling run.

    Attributes:
        states: (n, B, N, 6) x of each step after its churn.
        clean: (n, B, N, 6) x0 from the first evaluation of each step.
        last: (B, N, 6) x after the last step.
    """

    states: jax.Array
    clean: jax.Array
    last: jax.Array


def denoise(
    predict: Predict, x: jax.Array, level: Level, *, scale: jax.Array | float, guided: bool
) -> jax.Array:
    """Estimate the clean points, with one evaluation of the network.

    Args:
        predict: the network; with guidance it gets twice as many rows, with its condition, then without.
        x: (B, N, 6) points at the noise level.
        level: the noise level.
        scale: s.
        guided: whether to use guidance (static).

    Returns:
        (B, N, 6) x0; within [-1, 1] unless guided.
    """
    seen = x / jnp.sqrt(level.sigma**2 + 1.0)
    seen = jnp.concatenate([seen, seen]) if guided else seen
    predicted = predict(seen, jnp.full(seen.shape[0], level.time))
    clean = jnp.clip(level.of_seen * seen - level.of_predicted * predicted, -1.0, 1.0)
    if not guided:
        return clean
    asked, dropped = jnp.split(clean, 2)
    return dropped + scale * (asked - dropped)


def sample(
    predict: Predict, plan: Plan, initial: jax.Array, churn_noise: jax.Array, *, guided: bool
) -> SampledWay:
    """Sample points; for use inside `jit`.

    Args:
        predict: see `denoise`.
        plan: plan of the stage.
        initial: (B, N, 6) initial standard normal noise.
        churn_noise: (n, B, N, 6) standard normal noise for each step.
        guided: whether the stage uses guidance (static).

    Returns:
        The trajectory; its last `clean` is the result.
    """

    clean_of = partial(denoise, predict, guided=guided)

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
    # The last step ends at zero noise and needs no second evaluation.
    x, clean, slope = begin_step(x, last_plan, last_noise)
    return SampledWay(
        states=jnp.concatenate([states, x[None]]),
        clean=jnp.concatenate([cleans, clean[None]]),
        last=x + (last_plan.second.sigma - last_plan.first.sigma) * slope,
    )
