"""Means with standard errors over prompts, by resampling: Efron 1979, and the jackknife that leaves out many.

Objects of one prompt resemble each other, so that errors are over prompts, not over objects.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

RESAMPLES = 2000


def mean_and_error(
    values_by_prompt: Mapping[str, Sequence[float | None]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float | None, float | None]:
    """Mean over prompts of the means over their seeds, and its standard error.

    Prompts are drawn with replacement, as many as there are; the deviation of the means of such draws, times
    √(P/(P − 1)), is an unbiased estimate but for the square root.

    Args:
        values_by_prompt: the numbers of each prompt's seeds; None is left out.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        The mean, None without a number; and the error, None of a single prompt or of what is not finite.
    """
    known = ([value for value in values if value is not None] for values in values_by_prompt.values())
    means = np.asarray([np.mean(values) for values in known if values], np.float64)
    if not len(means):
        return None, None
    mean = float(np.mean(means))
    if len(means) < 2 or not math.isfinite(mean):
        return mean, None
    draws = np.random.default_rng(seed).integers(len(means), size=(resamples, len(means)))
    spread = float(np.std(means[draws].mean(axis=1)))
    return mean, spread * math.sqrt(len(means) / (len(means) - 1))


def error_by_halves(
    estimate: Callable[[np.ndarray], float], count: int, *, resamples: int = 100, seed: int = 0
) -> float | None:
    """Standard error of an estimate that repeated prompts would bias: its deviation over halves of them.

    Halves are drawn without replacement. √(kept/left out), near 1, corrects for their size (Shao & Wu 1989).

    Args:
        estimate: of the prompts whose indices it is given.
        count: number of prompts.
        resamples: number of halves.
        seed: of the draws.

    Returns:
        None for fewer than 4 prompts.
    """
    if count < 4:
        return None
    random, kept = np.random.default_rng(seed), count // 2
    values = [estimate(np.sort(random.permutation(count)[:kept])) for _ in range(resamples)]
    return float(np.std(values)) * math.sqrt(kept / (count - kept))
