"""How well an object was edited: whether the edit reached its target and left everything else unchanged.

All views are on white, from cameras that all objects share. D is the set of pixels where the true source and
the true target differ; "the rest" is where both cover the pixel and look the same.

| name | meaning | best |
|---|---|---|
| outline | intersection over union of the silhouettes with the source object's | 1 if the shape is to stay |
| moved | Chamfer distance to the source object's visible surface, divided by its size | 0 if it is to stay |
| rest_psnr | PSNR of the rest to the source object, in decibels; None if there is no rest | ∞ |
| reached | fraction of the views that are closer to the true target than to the true source, on D | 1 |
| way_left | RMS distance to the true target on D, relative to the source object's; 1 means no progress | 0 |
| psnr | PSNR to the true target's views, in decibels, averaged over views | ∞ |
| overlap | intersection over union of the silhouettes with the true target's | 1 |
| chamfer | Chamfer distance to the true target's visible surface, divided by its size | 0 |
"""

import math

import numpy as np

from ge3d_jax.metrics.likeness import COVERED, FARTHEST, Views, chamfer, overlap, size_of
from ge3d_jax.metrics.pictures import LOUDEST

# Color difference above which ground-truth pixels differ; antialiased edges of equal things differ by less.
_DIFFERENT = 0.02


def measure_kept(edited: Views, source: Views) -> dict[str, float]:
    """Measure how much of the source object's shape was preserved: `outline` and `moved`.

    Args:
        edited: the edited object.
        source: the source object of the edit.
    """
    return {
        "outline": overlap(edited.alphas, source.alphas),
        "moved": _distance(edited, source),
    }


def measure_reached(
    edited: Views, source: Views, true_target: Views, true_source: Views
) -> dict[str, float | None]:
    """Measure whether an edit reached its target: `rest_psnr`, `reached`, and `way_left`.

    Args:
        edited: the edited object.
        source: the source object of the edit.
        true_target, true_source: the ground truth of the two sentences; they differ somewhere.
    """
    gap = np.max(np.abs(true_target.pictures - true_source.pictures), axis=-1)
    differs = gap > _DIFFERENT
    rest = ~differs & (true_target.alphas > COVERED) & (true_source.alphas > COVERED)

    def distances(views: Views, other: Views) -> np.ndarray:
        """Squared color distance of each view, summed over D."""
        squares = np.sum((views.pictures.astype(np.float64) - other.pictures) ** 2, axis=-1)
        return np.sum(squares * differs, axis=(1, 2))

    to_target, to_source = distances(edited, true_target), distances(edited, true_source)
    tells = differs.any(axis=(1, 2))
    before = float(np.sum(distances(source, true_target)))
    kept = None
    if rest.any():
        kept = _decibels(float(np.mean((edited.pictures.astype(np.float64) - source.pictures)[rest] ** 2)))
    return {
        "rest_psnr": kept,
        "reached": float(np.mean((to_target < to_source)[tells])),
        "way_left": math.sqrt(float(np.sum(to_target)) / before) if before else None,
    }


def measure_truth(edited: Views, true_target: Views) -> dict[str, float]:
    """Measure how close an edited object is to the true target: `psnr`, `overlap`, and `chamfer`."""
    errors = np.mean((edited.pictures.astype(np.float64) - true_target.pictures) ** 2, axis=(1, 2, 3))
    return {
        "psnr": float(np.mean([_decibels(float(error)) for error in errors])),
        "overlap": overlap(edited.alphas, true_target.alphas),
        "chamfer": _distance(edited, true_target),
    }


def _distance(views: Views, other: Views) -> float:
    """Chamfer distance of the visible surfaces, divided by the other object's size."""
    return min(chamfer(views.points, other.points) / size_of(other.points), FARTHEST)


def _decibels(error: float) -> float:
    """PSNR for a mean squared error of images in [0, 1]."""
    return LOUDEST if error == 0 else min(-10.0 * math.log10(error), LOUDEST)
