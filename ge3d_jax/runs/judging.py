"""All numbers by which objects are judged: each a line of METRICS.

| name | what it is of |
|---|---|
| a metric `of_object` | one object |
| a metric `of_objects` | many objects, also those of several prompts |
| a metric that `needs` weights | see `runs.weighted_metrics` |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ge3d_jax.core.caching import cache_folder
from ge3d_jax.core.errors import UserError
from ge3d_jax.metrics.bootstrap import error_by_halves, mean_and_error
from ge3d_jax.metrics.colors import colors_of, contrast_ratio, saturation_ratio
from ge3d_jax.metrics.diversity import shape_diversity, texture_diversity
from ge3d_jax.metrics.frechet import frechet_distance, kernel_distance
from ge3d_jax.metrics.likeness import COVERED, FARTHEST, Views, compare_views
from ge3d_jax.metrics.pictures import LOUDEST
from ge3d_jax.metrics.recognition import Gallery, load_gallery
from ge3d_jax.metrics.shrunken import shrunken_features
from ge3d_jax.runs.evaluate import measure_object
from ge3d_jax.runs.judged import Judged
from ge3d_jax.toybox.world.captions import parse

# A number, and its standard error; None where there is none.
Estimate = tuple[float | None, float | None]
# An object of which fewer views than this share are recognized, or of which nothing is seen, has failed.
FAILED_BELOW = 0.5


class Facts:
    """What several numbers of an object have in common; computed when first asked for."""

    def __init__(self, judged: Judged, gallery: Gallery) -> None:
        """Nothing is computed yet."""
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
        """Colors (N, 3) of the object and (M, 3) of the truth, where each of them is."""
        views, truth = self.judged.views, self.judged.truth
        return colors_of(views.pictures, views.alphas), colors_of(truth.pictures, truth.alphas)

    @property
    def fronts(self) -> int | None:
        """On how many of the four sides a front is seen; None of a kind that has none."""
        found = self.recognized
        return None if found["one_front"] is None else len(found["fronts_at_degrees"])

    @property
    def failed(self) -> bool:
        """Whether too few views are recognized, or nothing is seen at all."""
        seen = bool((self.judged.views.alphas > COVERED).any())
        return not seen or self.recognized["right_kind_and_color"] < FAILED_BELOW


@dataclass(frozen=True)
class Metric:
    """A number by which objects are judged.

    Attributes:
        label: how tables name it.
        digits: behind the point, in tables.
        better: which numbers are: "higher", "lower", "one" if the nearest to 1 is best; None if none is.
        of_object: the number of one object, where it is of one.
        of_objects: the number of many with its error, where it is of many.
        needs: the weights without which it cannot be had; `runs.weighted_metrics` computes it.
    """

    label: str
    digits: int
    better: Literal["higher", "lower", "one"] | None
    of_object: Callable[[Facts], float | None] | None = None
    of_objects: Callable[[Sequence[Judged]], Estimate] | None = None
    needs: str | None = None


def _likeness(name: str, *, worst: float | None = None, most: float | None = None) -> Callable[[Facts], Any]:
    """A number of `metrics.likeness`: `worst` where it is None, and `most` at most."""

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
    """A diversity across the seeds of a prompt, mean over prompts."""

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
    """A distance of two sets of pictures, and its error over prompts.

    Args:
        made: for each prompt features (N, D) of pictures.
        real: for each prompt features (M, D) of those that they should be like.
        measure: the distance of two sets of features.
    """

    def estimate(prompts: np.ndarray) -> float:
        return measure(*(np.concatenate([each[index] for index in prompts]) for each in (made, real)))

    return estimate(np.arange(len(made))), error_by_halves(estimate, len(made))


def _shrunken(measure: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[Sequence[Judged]], Estimate]:
    """A distance of all pictures to all true ones, both shrunken."""

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
    # No direction: it takes the sharp outlines and even colors of the truth itself for damage, 83 to 99, and
    # likes blurred objects better, about 60.
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
        UserError: one that does not.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"There is no metric {name!r}; use some of {', '.join(METRICS)}.")


def load_judges(report: Callable[[str], None] | None = None) -> Gallery:
    """The recognizer's gallery; the first time on a machine it takes two minutes to trace.

    Args:
        report: told what is traced, a line each.
    """
    return load_gallery(cache_folder(), report=report)


def judge_object(
    judged: Judged, gallery: Gallery, *, metrics: Sequence[str] | None = None
) -> dict[str, float | None]:
    """The numbers of one object.

    Args:
        judged: the object, from `see`.
        gallery: from `load_judges`.
        metrics: names in METRICS, of one object; None for all that need no weights.

    Returns:
        The numbers by name; None for what the object has not, as the fronts of a mushroom.

    Raises:
        UserError: a metric that does not exist.
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
    """The numbers of many objects: diversity across seeds, and distances of all pictures to all true ones.

    Args:
        objects: of one prompt or of several; diversity is within each prompt, mean over prompts.
        metrics: names in METRICS, of many objects; None for all that need no weights.

    Returns:
        Two numbers each: by name, and its standard error over prompts by name with "_error" behind it. None
        for the diversity of single seeds, and for errors of too few prompts.

    Raises:
        UserError: a metric that does not exist.
    """
    check_metrics(metrics or ())
    numbers: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        if metric.of_objects is not None and (metrics is None or name in metrics):
            numbers[name], numbers[f"{name}_error"] = metric.of_objects(objects)
    return numbers
