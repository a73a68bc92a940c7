"""All metrics for judging objects, each an entry of METRICS.

| metric | applies to |
|---|---|
| a metric with `of_object` | one object |
| a metric with `of_objects` | many objects, possibly of several prompts |
| a metric that `needs` weights | see `runs.weighted_metrics` |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.metrics.bootstrap import error_by_halves, mean_and_error
from ge3d_jax.metrics.colors import colors_of, contrast_ratio, saturation_ratio
from ge3d_jax.metrics.diversity import shape_diversity, texture_diversity
from ge3d_jax.metrics.frechet import frechet_distance, kernel_distance
from ge3d_jax.metrics.likeness import COVERED, FARTHEST, Views, compare_views
from ge3d_jax.metrics.pictures import LOUDEST
from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.metrics.shrunken import shrunken_features
from ge3d_jax.runs.evaluate import measure_object
from ge3d_jax.runs.judged import Judged
from ge3d_jax.toybox.world.captions import parse

# A number and its standard error; None if there is none.
Estimate = tuple[float | None, float | None]
# An object has failed if a smaller fraction of its views is recognized, or if nothing of it is visible.
FAILED_BELOW = 0.5


class Facts:
    """Intermediate results shared by several metrics of an object, computed lazily."""

    def __init__(self, judged: Judged, gallery: Gallery) -> None:
        """Store the inputs; nothing is computed yet."""
        self.judged = judged
        self._gallery = gallery

    @cached_property
    def recognized(self) -> dict[str, Any]:
        """See `evaluate.measure_object`."""
        return measure_object(self._gallery, self.judged.prompt, self.judged.pictures)

    @cached_property
    def likeness(self) -> dict[str, float | None]:
        """See `metrics.likeness`."""
        judged = self.judged
        return compare_views(judged.views, judged.truth, judged.gaussians, parse(judged.prompt))

    @cached_property
    def colors(self) -> tuple[np.ndarray, np.ndarray]:
        """Colors (N, 3) of the object and (M, 3) of the truth, each at the pixels it covers."""
        views, truth = self.judged.views, self.judged.truth
        return colors_of(views.pictures, views.alphas), colors_of(truth.pictures, truth.alphas)

    @property
    def fronts(self) -> int | None:
        """Number of the four sides on which a front is seen; None for a kind without a front."""
        found = self.recognized
        return None if found["one_front"] is None else len(found["fronts_at_degrees"])

    @property
    def failed(self) -> bool:
        """Whether too few views are recognized, or nothing is visible at all."""
        seen = bool((self.judged.views.alphas > COVERED).any())
        return not seen or self.recognized["right_kind_and_color"] < FAILED_BELOW


@dataclass(frozen=True)
class Metric:
    """A metric for judging objects.

    Attributes:
        label: name in tables.
        digits: number of decimals in tables.
        better: which values are better: "higher", "lower", or "one" if the closest to 1 is best; None if no
            value is.
        of_object: computes the metric of one object, if it applies to one.
        of_objects: computes the metric of many objects with its error, if it applies to many.
        needs: the weights that it needs; `runs.weighted_metrics` then computes it.
    """

    label: str
    digits: int
    better: Literal["higher", "lower", "one"] | None
    of_object: Callable[[Facts], float | None] | None = None
    of_objects: Callable[[Sequence[Judged]], Estimate] | None = None
    needs: str | None = None


def _likeness(name: str, *, worst: float | None = None, most: float | None = None) -> Callable[[Facts], Any]:
    """A metric of `metrics.likeness`, with None replaced by `worst` and values capped at `most`."""

    def of_object(facts: Facts) -> float | None:
        value = facts.likeness[name]
        value = worst if value is None else value
        return value if value is None or most is None else min(value, most)

    return of_object


def _as_number(flag: bool | None) -> float | None:
    return None if flag is None else float(flag)


def _multi_faced(facts: Facts) -> float | None:
    return None if facts.fronts is None else float(facts.fronts > 1)


def by_prompt(objects: Sequence[Judged]) -> dict[str, list[Judged]]:
    """The objects of each prompt, in the order of their first appearance."""
    groups: dict[str, list[Judged]] = {}
    for one in objects:
        groups.setdefault(one.prompt, []).append(one)
    return groups


def _diversity(measure: Callable[[list[Views]], float | None]) -> Callable[[Sequence[Judged]], Estimate]:
    """Diversity across the seeds of a prompt, averaged over prompts."""

    def of_objects(objects: Sequence[Judged]) -> Estimate:
        groups = by_prompt(objects)
        return mean_and_error(
            {prompt: [measure([one.views for one in group])] for prompt, group in groups.items()}
        )

    return of_objects


def distance_of_groups(
    made: Sequence[np.ndarray],
    real: Sequence[np.ndarray],
    measure: Callable[[np.ndarray, np.ndarray], float],
) -> Estimate:
    """The distance between two sets of images, and its error over prompts.

    Args:
        made: for each prompt, features (N, D) of the images.
        real: for each prompt, features (M, D) of the reference images.
        measure: computes the distance between two sets of features.
    """

    def estimate(prompts: np.ndarray) -> float:
        return measure(*(np.concatenate([each[index] for index in prompts]) for each in (made, real)))

    return estimate(np.arange(len(made))), error_by_halves(estimate, len(made))


def _shrunken(measure: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[Sequence[Judged]], Estimate]:
    """The distance between all images and all true ones, both downscaled."""

    def of_objects(objects: Sequence[Judged]) -> Estimate:
        groups = list(by_prompt(objects).values())
        made = [np.concatenate([shrunken_features(one.pictures) for one in group]) for group in groups]
        real = [shrunken_features(group[0].truth.pictures) for group in groups]
        return distance_of_groups(made, real, measure)

    return of_objects


METRICS: dict[str, Metric] = {
    "views_right": Metric(
        "views recognized", 2, "higher", of_object=lambda facts: facts.recognized["right_kind_and_color"]
    ),
    "one_front": Metric(
        "one front", 2, "higher", of_object=lambda facts: _as_number(facts.recognized["one_front"])
    ),
    "fronts": Metric("fronts", 2, "one", of_object=lambda facts: facts.fronts),
    "multi_faced": Metric("several faces (Janus)", 2, "lower", of_object=_multi_faced),
    "failed": Metric("failed", 2, "lower", of_object=lambda facts: float(facts.failed)),
    "psnr": Metric("PSNR to the truth, dB", 1, "higher", of_object=_likeness("psnr", most=LOUDEST)),
    "ssim": Metric("SSIM to the truth", 3, "higher", of_object=_likeness("ssim")),
    "lpips": Metric("LPIPS (VGG16) to the truth", 3, "lower", needs="lpips"),
    "overlap": Metric("silhouette IoU", 3, "higher", of_object=_likeness("overlap")),
    "chamfer": Metric("Chamfer, of the size", 3, "lower", of_object=_likeness("chamfer", most=FARTHEST)),
    "depth": Metric(
        "depth error, of the size", 3, "lower", of_object=_likeness("depth", worst=FARTHEST, most=FARTHEST)
    ),
    "sharpness": Metric("sharpness, of the truth's", 2, "one", of_object=_likeness("sharpness")),
    "tint": Metric("tint", 3, "lower", of_object=_likeness("tint")),
    "specks": Metric("opacity outside", 3, "lower", of_object=_likeness("specks")),
    "saturation": Metric(
        "saturation, of the truth's", 2, "one", of_object=lambda facts: saturation_ratio(*facts.colors)
    ),
    "contrast": Metric(
        "contrast, of the truth's", 2, "one", of_object=lambda facts: contrast_ratio(*facts.colors)
    ),
    # No direction: it rates the sharp outlines and even colors of the truth itself as artifacts (83 to 99)
    # and prefers blurred objects (about 60).
    "brisque": Metric("BRISQUE", 1, None, needs="brisque"),
    "clip_similarity": Metric("CLIP similarity", 3, "higher", needs="clip"),
    "seconds": Metric("seconds", 0, "lower", of_object=lambda facts: facts.judged.seconds),
    "shape_diversity": Metric("diversity of shape", 3, "higher", of_objects=_diversity(shape_diversity)),
    "texture_diversity": Metric(
        "diversity of texture", 3, "higher", of_objects=_diversity(texture_diversity)
    ),
    "shrunken_fid": Metric("FID of shrunken pictures", 2, "lower", of_objects=_shrunken(frechet_distance)),
    "shrunken_kid": Metric("KID of shrunken pictures", 4, "lower", of_objects=_shrunken(kernel_distance)),
    "r_precision": Metric("R-precision by CLIP", 2, "higher", needs="clip"),
    "cmmd": Metric("CMMD", 1, "lower", needs="clip"),
    "fid": Metric("FID", 1, "lower", needs="inception"),
}


def check_metrics(names: Sequence[str]) -> None:
    """Check that metrics exist.

    Raises:
        UserError: a metric does not exist.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"There is no metric {name!r}; use some of {', '.join(METRICS)}.")


def judge_object(
    judged: Judged, gallery: Gallery, *, metrics: Sequence[str] | None = None
) -> dict[str, float | None]:
    """Compute the metrics of one object.

    Args:
        judged: the object, from `see`.
        gallery: from `recognition.load_gallery`.
        metrics: names in METRICS of metrics for one object; None means all that need no weights.

    Returns:
        Metric name → value; None if not applicable, such as the fronts of a mushroom.

    Raises:
        UserError: a metric does not exist.
    """
    check_metrics(metrics or ())
    facts = Facts(judged, gallery)
    return {
        name: metric.of_object(facts)
        for name, metric in METRICS.items()
        if metric.of_object is not None and (metrics is None or name in metrics)
    }


def judge_group(
    objects: Sequence[Judged], *, metrics: Sequence[str] | None = None
) -> dict[str, float | None]:
    """Compute the metrics of many objects: diversity across seeds, and distances to the true images.

    Args:
        objects: objects of one or more prompts; diversity is within each prompt, averaged over prompts.
        metrics: names in METRICS of metrics for many objects; None means all that need no weights.

    Returns:
        Two numbers for each metric: the value under its name, and the standard error over prompts under the
        name with the suffix "_error". None for the diversity of single seeds, and for errors over too few
        prompts.

    Raises:
        UserError: a metric does not exist.
    """
    check_metrics(metrics or ())
    numbers: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        if metric.of_objects is not None and (metrics is None or name in metrics):
            numbers[name], numbers[f"{name}_error"] = metric.of_objects(objects)
    return numbers
