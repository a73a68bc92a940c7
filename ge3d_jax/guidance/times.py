"""Timestep schedules of the one-step losses: how each method chooses timesteps over a run.

Symbols: k, iteration; T, number of iterations; t, timestep; r_t = √((1−ᾱ_t)/ᾱ_t), of Stable Diffusion's noise
schedule. Each class gives the bounds of t for every iteration, in the authors' order of operations.
"""

import dataclasses
import math

import jax
import numpy as np

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.guidance.annealing import STEPS, at, check_times, linear_table
from ge3d_jax.guidance.base import Progress

VARIANTS = ("paper", "author")


@dataclasses.dataclass(frozen=True)
class Times:
    """Base class of the timestep schedules; see the module docstring."""

    @property
    def latest(self) -> int:
        """The largest timestep that can be drawn."""
        raise NotImplementedError

    def bounds(self, iterations: int) -> np.ndarray:
        """Return the smallest and largest timestep of each iteration, both inclusive: (T, 2) int32."""
        raise NotImplementedError

    def draw(self, key: jax.Array, progress: Progress, views: int) -> jax.Array:
        """Draw an iteration's timesteps, one per view: (B,) int32, uniform between the bounds."""
        low, high = at(self.bounds(progress.iterations), progress)
        return jax.random.randint(key, (views,), low, high + 1)


@dataclasses.dataclass(frozen=True)
class UniformTimes(Times):
    """Fixed bounds, optionally with a different upper bound later on (DreamFusion, ProlificDreamer, CSD).

    Attributes:
        low, high: the bounds, both inclusive.
        late_from: the iteration from which `late_high` is the upper bound, None for never.
        late_high: the upper bound from iteration `late_from` on.
    """

    low: int = 20
    high: int = 980
    late_from: int | None = None
    late_high: int = 500

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_times("times.high", (self.low, self.high))
        if self.late_from is not None:
            check_times("times.late_high", (self.low, self.late_high))

    @property
    def latest(self) -> int:
        """The greater of the two upper bounds."""
        return self.high if self.late_from is None else max(self.high, self.late_high)

    def bounds(self, iterations: int) -> np.ndarray:
        """See `Times.bounds`."""
        late = iterations if self.late_from is None else self.late_from
        high = np.where(np.arange(iterations) >= late, self.late_high, self.high)
        return np.stack([np.full(iterations, self.low), high], axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class LinearTimes(Times):
    """Both bounds move linearly (MVDream).

    Attributes:
        low, high: each bound as a fraction of the schedule, (at the start, at the end). Timesteps are
            1000 × the fraction, rounded down; annealing whole numbers would round differently from the
            authors' code.
        anneal_iterations: number of iterations over which the bounds move.
    """

    low: tuple[float, float] = (0.98, 0.02)
    high: tuple[float, float] = (0.98, 0.5)
    anneal_iterations: int = 8000

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        for low, high in zip(self.low, self.high, strict=True):
            check_times("times.high", (STEPS * low, STEPS * high))
        check_at_least(**{"times.anneal_iterations": (self.anneal_iterations, 1)})

    @property
    def latest(self) -> int:
        """The highest value of the upper bound."""
        return int(STEPS * max(self.high))

    def bounds(self, iterations: int) -> np.ndarray:
        """See `Times.bounds`."""
        shares = [linear_table(pair, self.anneal_iterations, iterations) for pair in (self.low, self.high)]
        return np.floor(STEPS * np.stack(shares, axis=1)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class OneTime(Times):
    """Base class of schedules with a single, decreasing timestep for all views of an iteration.

    Attributes:
        low, high: bounds of the timestep over the run.
    """

    low: int = 20
    high: int = 980

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_times("times.high", (self.low, self.high))

    @property
    def latest(self) -> int:
        """The timestep at which the schedule begins."""
        return self.high

    def path(self, iterations: int) -> np.ndarray:
        """Return the timestep of each iteration, (T,)."""
        raise NotImplementedError

    def bounds(self, iterations: int) -> np.ndarray:
        """See `Times.bounds`."""
        return np.stack([self.path(iterations)] * 2, axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class FallingTimes(OneTime):
    """A timestep that decreases linearly over the run (DreamGaussian).

    t = round(1000·(1 − (k+1)/T)), clipped to `low` … `high`; halves round to even.
    """

    def path(self, iterations: int) -> np.ndarray:
        """See `OneTime.path`."""
        share = np.arange(1, iterations + 1) / iterations
        return np.clip(np.round((1 - share) * STEPS), self.low, self.high)


@dataclasses.dataclass(frozen=True)
class DreamTime(OneTime):
    """A decreasing timestep whose pace follows a density over the timesteps (arXiv 2306.12422).

    P(t) is the fraction of the density p at t and above. In iteration k, "paper" takes the t whose P is
    nearest to (k+1)/T, with p ∝ W. The author's later code ("author") takes the first t from above whose P
    reaches (k+1)/T, with p ∝ W·r. W is 1 between the two means and Gaussian outside, with a separate width
    on each side.

    Attributes:
        variant: "paper" or "author".
        means: the interval on which W is 1.
        widths: of W below the first mean and above the second.
    """

    variant: str = "paper"
    means: tuple[float, float] = (500.0, 800.0)
    widths: tuple[float, float] = (100.0, 300.0)

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise UserError(
                f"The setting times.variant is {shown(self.variant)}; use one of {', '.join(VARIANTS)}."
            )
        check_times("times.means", self.means)
        if min(self.widths) <= 0:
            raise UserError(f"The setting times.widths is {self.widths}; give widths above 0.")

    def path(self, iterations: int) -> np.ndarray:
        """See `OneTime.path`."""
        times = np.arange(self.low, self.high + 1)
        below, above = np.minimum(times - self.means[0], 0), np.maximum(times - self.means[1], 0)
        density = np.exp(-0.5 * ((below / self.widths[0]) ** 2 + (above / self.widths[1]) ** 2))
        if self.variant == "author":
            density = density * _noise_to_signal()[times]
        # From the largest timestep down, rising to 1.
        shares = np.cumsum(density[::-1] / np.sum(density))
        wanted = np.arange(1, iterations + 1) / iterations
        reached = np.minimum(np.searchsorted(shares, wanted), len(times) - 1)
        if self.variant == "paper":
            before = np.maximum(reached - 1, 0)
            reached = np.where(wanted - shares[before] < shares[reached] - wanted, before, reached)
        return times[::-1][reached]


def _noise_to_signal() -> np.ndarray:
    """Return r_t of Stable Diffusion's schedule, (1000,) float64."""
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), STEPS) ** 2
    alphas = np.cumprod(1 - betas)
    return np.sqrt((1 - alphas) / alphas)


TIMES: dict[str, type[Times]] = {
    "uniform": UniformTimes,
    "linear": LinearTimes,
    "falling": FallingTimes,
    "dreamtime": DreamTime,
}
