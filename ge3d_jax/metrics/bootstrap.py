"""Means and standard errors over prompts, by resampling: the bootstrap (Efron 1979) and delete-d jackknife.

Objects of the same prompt resemble each other, so errors are computed over prompts rather than objects.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

RESAMPLES = 2000


def mean_and_error(
    values_by_prompt: Mapping[str, Sequence[float | None]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float | None, float | None]:
    """Mean over prompts of their means over seeds, and its standard error.

    Each bootstrap sample draws P of the P prompts with replacement. The standard deviation of the samples'
    means, times √(P/(P − 1)), is an unbiased estimate except for the square root.

    Args:
        values_by_prompt: the values of each prompt's seeds; None values are skipped.
        resamples: number of bootstrap samples.
        seed: random seed of the bootstrap.

    Returns:
        The mean (None if there are no values) and its error (None for a single prompt or a non-finite mean).
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
    """Standard error of an estimate that repeated prompts would bias: its deviation over random halves.

    Halves of the prompts are drawn without replacement. The factor √(kept/left out), close to 1, corrects for
    their size (Shao & Wu 1989).

    Args:
        estimate: computes the estimate from the prompts with the given indices.
        count: number of prompts.
        resamples: number of random halves.
        seed: random seed.

    Returns:
        The standard error, or None for fewer than 4 prompts.
    """
    if count < 4:
        return None
    random, kept = np.random.default_rng(seed), count // 2
    values = [estimate(np.sort(random.permutation(count)[:kept])) for _ in range(resamples)]
    return float(np.std(values)) * math.sqrt(kept / (count - kept))
