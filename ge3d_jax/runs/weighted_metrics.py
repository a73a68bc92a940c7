"""Metrics by published networks: what is there is computed, and what is absent says how to get it.

| name | weights | of |
|---|---|---|
| brisque | the regression in the package brisque | an object, mean over its views |
| clip_similarity | a CLIP | an object, mean over its views |
| r_precision | a CLIP | many objects, share of views nearest to their own sentence among all of them |
| cmmd | a CLIP, as published openai/clip-vit-large-patch14-336 | many objects, to the true views |
| fid | Inception's features by a function of one's own | many objects, to the true views |
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.clip import TextTower, VisionTower, load_text_tower, load_vision_tower
from ge3d_jax.metrics.bootstrap import mean_and_error
from ge3d_jax.metrics.brisque import BrisqueModel, brisque, load_brisque
from ge3d_jax.metrics.clip_similarity import clip_similarity, r_precision
from ge3d_jax.metrics.cmmd import cmmd
from ge3d_jax.metrics.frechet import frechet_distance
from ge3d_jax.runs.judged import Judged
from ge3d_jax.runs.judging import Estimate, by_prompt, distance_of_groups
from ge3d_jax.viewer.sheet import to_uint8

# Features (N, D) of pictures, uint8 (N, H, W, 3).
PictureFeatures = Callable[[np.ndarray], np.ndarray]

_NO_CLIP = (
    "CLIP similarity, R-precision and CMMD need a CLIP; give the folder of a download, or its id on the hub, "
    "as openai/clip-vit-large-patch14-336."
)
_NO_INCEPTION = (
    "FID needs Inception's features, and no such network comes with this package; give a function that makes "
    "them of pictures, as that of a package for FID."
)


@dataclass(frozen=True)
class Clip:
    """Both towers of a CLIP."""

    texts: TextTower
    pictures: VisionTower


@dataclass(frozen=True)
class Weights:
    """What was found.

    Attributes:
        brisque: BRISQUE's regression.
        clip: a CLIP.
        inception: features of Inception v3's last pooling, as FID takes them.
        absent: a sentence about each that is not there: what needs it, and how to get it.
    """

    brisque: BrisqueModel | None = None
    clip: Clip | None = None
    inception: PictureFeatures | None = None
    absent: tuple[str, ...] = ()


def find_weights(
    *,
    clip: str | os.PathLike[str] | None = None,
    brisque_folder: Path | None = None,
    inception: PictureFeatures | None = None,
) -> Weights:
    """Load the weights that can be had; what cannot is told in `absent` and stops nothing.

    Args:
        clip: folder or hub id of a CLIP.
        brisque_folder: with BRISQUE's files; None for the package's.
        inception: FID's features.
    """
    absent = []
    regression, towers = None, None
    try:
        regression = load_brisque(brisque_folder)
    except UserError as error:
        absent.append(str(error))
    if clip is None:
        absent.append(_NO_CLIP)
    else:
        try:
            towers = Clip(load_text_tower(clip), load_vision_tower(clip))
        except UserError as error:
            absent.append(str(error))
    if inception is None:
        absent.append(_NO_INCEPTION)
    return Weights(regression, towers, inception, tuple(absent))


def weigh_object(judged: Judged, weights: Weights) -> dict[str, float]:
    """The numbers of one object by the weights that are there, by their names in `judging.METRICS`.

    Args:
        judged: the object.
        weights: from `find_weights`.
    """
    numbers = {}
    if weights.brisque is not None:
        scores = [brisque(weights.brisque, picture) for picture in judged.pictures]
        known = [score for score in scores if score is not None]
        if known:
            numbers["brisque"] = float(np.mean(known))
    if weights.clip is not None:
        text = np.asarray(weights.clip.texts.features([judged.prompt]))[0]
        numbers["clip_similarity"] = clip_similarity(_seen(weights.clip, judged.pictures), text)
    return numbers


def weigh_group(objects: Sequence[Judged], weights: Weights) -> dict[str, float | None]:
    """The numbers of many objects by the weights that are there.

    Args:
        objects: of several prompts; R-precision tells apart no more than these.
        weights: from `find_weights`.

    Returns:
        Two numbers each, as from `judging.judge_group`.
    """
    found: dict[str, Estimate] = {}
    groups = by_prompt(objects)
    shown = [np.concatenate([one.pictures for one in group]) for group in groups.values()]
    truths = [group[0].truth.pictures for group in groups.values()]
    if weights.clip is not None:
        features, true_features = ([_seen(weights.clip, each) for each in side] for side in (shown, truths))
        texts = np.asarray(weights.clip.texts.features(list(groups)))
        if len(groups) > 1:
            found["r_precision"] = mean_and_error(
                {
                    prompt: [r_precision(own, texts, np.full(len(own), index))]
                    for index, (prompt, own) in enumerate(zip(groups, features, strict=True))
                }
            )
        found["cmmd"] = distance_of_groups(features, true_features, cmmd)
    if weights.inception is not None:
        made, real = ([weights.inception(to_uint8(each)) for each in side] for side in (shown, truths))
        found["fid"] = distance_of_groups(made, real, frechet_distance)
    return {
        key: value
        for name, (mean, error) in found.items()
        for key, value in ((name, mean), (f"{name}_error", error))
    }


def _seen(clip: Clip, pictures: np.ndarray) -> np.ndarray:
    return clip.pictures.features(list(to_uint8(pictures)))
