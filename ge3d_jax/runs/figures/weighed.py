"""Cached evaluation of a series by the metrics that need published weights, on top of the other metrics."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ge3d_jax.metrics.inception import load_inception
from ge3d_jax.runs.evaluate import object_pictures
from ge3d_jax.runs.figures.base import Record, remember
from ge3d_jax.runs.figures.loss_series import Done, Judges, Series, group_path, splats_of
from ge3d_jax.runs.judged import see
from ge3d_jax.runs.judging import METRICS
from ge3d_jax.runs.weighted_metrics import (
    PACKAGED,
    Shown,
    Weights,
    find_weights,
    load_clip,
    weigh_group,
    weigh_object,
)

# Views of an object whose truth is unknown: as many as in the paper, at a size suitable for CLIP.
_VIEWS, _SIZE = 20, 512


@dataclass(frozen=True)
class Scales:
    """The weights for judging objects.

    Attributes:
        weights: the available weights.
        clip: the name of the CLIP model among them.
        inception: the file of Inception among them.
    """

    weights: Weights
    clip: str | None
    inception: str | None

    @property
    def told(self) -> dict[str, Any]:
        """Everything that a cached evaluation depends on."""
        packaged = {name: getattr(self.weights, name) is not None for name in PACKAGED}
        return {"clip": self.clip, "inception": self.inception, **packaged}


def find_scales(metrics: Sequence[str], clip: str | None, inception: str | None = None) -> Scales | None:
    """Load the weights that metrics need; None if no metric needs any.

    Args:
        metrics: names in METRICS.
        clip: folder, file or hub id of a CLIP model.
        inception: file of the Inception of FID.

    Raises:
        UserError: there is no such CLIP model or Inception. Other weights may be missing.
    """
    needs = {METRICS[name].needs for name in metrics} - {None}
    if not needs:
        return None
    weights = find_weights(
        clip=None if clip is None else load_clip(clip),
        inception=None if inception is None else load_inception(inception),
        packaged={name: load for name, load in PACKAGED.items() if name in needs},
    )
    return Scales(weights, clip, inception)


def weigh(done: Done, judges: Judges, scales: Scales, *, keeps: bool) -> Done:
    """Add the metrics of `weigh_object` for finished objects, and those of `weigh_group`, to a series.

    Args:
        done: the available results of the series.
        judges: the judges, with the known truths.
        scales: from `find_scales`.
        keeps: whether to cache the results.
    """
    series = done.series
    key = hashlib.sha256(json.dumps(scales.told, sort_keys=True).encode()).hexdigest()[:8]
    weighed = []
    for one in done.objects:
        path = series.path(one.prompt, one.seed)
        asked = {**scales.told, "prompt": one.prompt, "seed": one.seed, "moment": one.moments[-1]}
        numbers = _numbers(
            path.with_name(f"{path.name}-weighed-{key}"),
            asked,
            partial(_weighed, series, one.prompt, one.seed, judges, scales),
            keeps=keeps,
        )
        weighed.append(replace(one, moments=[*one.moments[:-1], {**one.moments[-1], **numbers}]))
    objects = [(one.prompt, one.seed) for one in done.objects]
    path = group_path(series, objects)
    together = _numbers(
        path.with_name(f"{path.name}-weighed-{key}"),
        {**scales.told, "objects": objects, "together": done.together},
        lambda: weigh_group([_shown(series, *one, judges) for one in objects], scales.weights),
        keeps=keeps,
    )
    return replace(done, objects=weighed, together={**done.together, **together})


def _numbers(
    path: Path, asked: Mapping[str, Any], make: Callable[[], Mapping[str, Any]], *, keeps: bool
) -> Mapping[str, Any]:
    if keeps or path.with_name(f"{path.name}.json").is_file():
        return remember(path, asked, lambda: Record(make())).numbers
    return make()


def _weighed(series: Series, prompt: str, seed: int, judges: Judges, scales: Scales) -> dict[str, float]:
    return weigh_object(_shown(series, prompt, seed, judges), scales.weights)


def _shown(series: Series, prompt: str, seed: int, judges: Judges) -> Shown:
    gaussians = splats_of(series, prompt, seed)
    if prompt in judges.truths:
        return Shown.of(see(prompt, seed, gaussians, truth=judges.truths[prompt]))
    return Shown(prompt, object_pictures(gaussians, _VIEWS, _SIZE))
