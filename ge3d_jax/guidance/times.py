"""The times that a one-step loss looks at: how each method chooses them over a run.

Symbols: k, iteration; T, number of iterations; t, time; r_t = √((1−ᾱ_t)/ᾱ_t), of Stable Diffusion's schedule.
Each choice gives the bounds of t for every iteration, by NumPy in float64, in the order of the authors'
operations: where they round down, so does this, to the same time. The table is static, only k is traced.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.base import Progress

STEPS = 1000
VARIANTS = ("paper", "author")


def linear_table(pair: tuple[float, float], anneal_iterations: int, iterations: int) -> np.ndarray:
    """From pair[0] to pair[1], linear over the first `anneal_iterations`, then constant: (T,) float64."""
    share = np.clip(np.arange(iterations) / anneal_iterations, 0.0, 1.0)
    return pair[0] + (pair[1] - pair[0]) * share


def at(table: np.ndarray, progress: Progress) -> jax.Array:
    """The entry of a table (T, ...) that belongs to the iteration."""
    return jnp.asarray(table)[jnp.asarray(progress.iteration)]


def check_times(name: str, pair: tuple[int | float, int | float]) -> None:
    """Check that a setting's two times lie within the schedule, in order. Raises UserError."""
    if not 0 <= pair[0] <= pair[1] < STEPS:
        raise UserError(
            f"The setting {name} leaves times from {pair[0]} to {pair[1]}; "
            f"choose two within 0 … {STEPS - 1}, the lower one first."
        )


def check_annealing(name: str, value: int) -> None:
    """Check a number of iterations to divide by. Raises UserError."""
    if value < 1:
        raise UserError(f"The setting {name} is {value}, but at least 1 is needed; raise it.")


@dataclasses.dataclass(frozen=True)
class Times:
    """Base of the choices; see the module."""

    @property
    def latest(self) -> int:
        """The latest time there may be."""
        raise NotImplementedError

    def bounds(self, iterations: int) -> np.ndarray:
        """The earliest and the latest time of each iteration, both possible: (T, 2) int32."""
        raise NotImplementedError

    def draw(self, key: jax.Array, progress: Progress, views: int) -> jax.Array:
        """The times of an iteration, one per view: (B,) int32, uniform between the bounds."""
        low, high = at(self.bounds(progress.iterations), progress)
        return jax.random.randint(key, (views,), low, high + 1)


@dataclasses.dataclass(frozen=True)
class UniformTimes(Times):
    """The same bounds throughout, or a lower upper bound later on (DreamFusion, ProlificDreamer, CSD).

    Attributes:
        low, high: the bounds, both possible.
        late_from: the iteration from which `late_high` is the upper bound, None for never.
        late_high: see there.
    """

    low: int = 20
    high: int = 980
    late_from: int | None = None
    late_high: int = 500

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        check_times("times.high", (self.low, self.high))
        if self.late_from is not None:
            check_times("times.late_high", (self.low, self.late_high))

    @property
    def latest(self) -> int:
        """The greater of both upper bounds."""
        return self.high if self.late_from is None else max(self.high, self.late_high)

    def bounds(self, iterations: int) -> np.ndarray:
        """See the base."""
        late = iterations if self.late_from is None else self.late_from
        high = np.where(np.arange(iterations) >= late, self.late_high, self.high)
        return np.stack([np.full(iterations, self.low), high], axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class LinearTimes(Times):
    """Both bounds move linearly (MVDream).

    Attributes:
        low, high: each bound as a share of the schedule, (at the start, at the end). The times are
            1000 × the share, rounded down: as whole numbers they would not round as the authors' do.
        anneal_iterations: how many iterations that takes.
    """

    low: tuple[float, float] = (0.98, 0.02)
    high: tuple[float, float] = (0.98, 0.5)
    anneal_iterations: int = 8000

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        for low, high in zip(self.low, self.high, strict=True):
            check_times("times.high", (STEPS * low, STEPS * high))
        check_annealing("times.anneal_iterations", self.anneal_iterations)

    @property
    def latest(self) -> int:
        """The upper bound where it is highest."""
        return int(STEPS * max(self.high))

    def bounds(self, iterations: int) -> np.ndarray:
        """See the base."""
        shares = [linear_table(pair, self.anneal_iterations, iterations) for pair in (self.low, self.high)]
        return np.floor(STEPS * np.stack(shares, axis=1)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class FallingTimes(Times):
    """One time for all views, falling linearly over the run (DreamGaussian).

    t = round(1000·(1 − (k+1)/T)), within `low` … `high`; a half is rounded to the even neighbor.
    """

    low: int = 20
    high: int = 980

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        check_times("times.high", (self.low, self.high))

    @property
    def latest(self) -> int:
        """The first."""
        return self.high

    def bounds(self, iterations: int) -> np.ndarray:
        """See the base."""
        share = np.arange(1, iterations + 1) / iterations
        times = np.clip(np.round((1 - share) * STEPS), self.low, self.high)
        return np.stack([times, times], axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class DreamTime(Times):
    """One time for all views, falling as fast as a density over the times allows (arXiv 2306.12422).

    P(t) is the share of the density p at t and above. In iteration k, the "paper" takes the t whose P is
    nearest to (k+1)/T, with p ∝ W; its author's later code ("author") the first t, coming from above, whose
    P reaches it, with p ∝ W·r. W is 1 between the two means and a Gaussian outside, with one width on each
    side.

    Attributes:
        low, high: the bounds.
        variant: "paper" or "author".
        means: from where to where W is 1.
        widths: of W below the first mean and above the second.
    """

    low: int = 20
    high: int = 980
    variant: str = "paper"
    means: tuple[float, float] = (500.0, 800.0)
    widths: tuple[float, float] = (100.0, 300.0)

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        check_times("times.high", (self.low, self.high))
        if self.variant not in VARIANTS:
            raise UserError(
                f"The setting times.variant is {self.variant!r}; use one of {', '.join(VARIANTS)}."
            )
        if self.means[0] > self.means[1]:
            raise UserError(f"The setting times.means is {self.means}; give the lower one first.")
        if min(self.widths) <= 0:
            raise UserError(f"The setting times.widths is {self.widths}; give widths above 0.")

    @property
    def latest(self) -> int:
        """The first."""
        return self.high

    def bounds(self, iterations: int) -> np.ndarray:
        """See the base."""
        times = np.arange(self.low, self.high + 1)
        below, above = np.minimum(times - self.means[0], 0), np.maximum(times - self.means[1], 0)
        density = np.exp(-0.5 * ((below / self.widths[0]) ** 2 + (above / self.widths[1]) ** 2))
        if self.variant == "author":
            density = density * _noise_to_signal()[times]
        # From the latest time down, rising to 1.
        shares = np.cumsum(density[::-1] / np.sum(density))
        wanted = np.arange(1, iterations + 1) / iterations
        reached = np.minimum(np.searchsorted(shares, wanted), len(times) - 1)
        if self.variant == "paper":
            before = np.maximum(reached - 1, 0)
            reached = np.where(wanted - shares[before] < shares[reached] - wanted, before, reached)
        chosen = times[::-1][reached]
        return np.stack([chosen, chosen], axis=1).astype(np.int32)


def _noise_to_signal() -> np.ndarray:
    """r_t of Stable Diffusion's schedule, (1000,) float64."""
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), STEPS) ** 2
    alphas = np.cumprod(1 - betas)
    return np.sqrt((1 - alphas) / alphas)


TIMES: dict[str, type[Times]] = {
    "uniform": UniformTimes,
    "linear": LinearTimes,
    "falling": FallingTimes,
    "dreamtime": DreamTime,
}
