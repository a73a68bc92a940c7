"""Shared parts of the tests of figures that compare losses: settings that take only seconds."""

from pathlib import Path

import numpy as np

from ge3d_jax.metrics.likeness import object_views
from ge3d_jax.metrics.recognition import build_gallery
from ge3d_jax.runs.evaluate import likeness_cameras
from ge3d_jax.runs.figures.loss_series import Done, Judges, Judgment, Series
from ge3d_jax.runs.figures.loss_settings import Settings
from ge3d_jax.runs.trials import Trial
from ge3d_jax.splatting.gaussians import make_gaussians
from tests.tiny_model import IMAGE_SIZE

TINY = {
    "iterations": "3",
    "views": "2",
    "image_size": str(IMAGE_SIZE),
    "start.count": "50",
    "buffer_capacity": "4096",
}
SDS = Trial("sds", TINY)
PROMPTS = ("a red mushroom", "a blue duck")
BALLS = {PROMPTS[0]: (0.8, 0.2, 0.1), PROMPTS[1]: (0.1, 0.2, 0.8), "a green lamp": (0.1, 0.7, 0.2)}


def tiny_settings(**changes):
    """Settings for two prompts with two seeds by SDS."""
    given = {
        "preset": "toybox64",
        "trials": (SDS,),
        "prompts": PROMPTS,
        "seeds": (0, 1),
        "budget": 0.2,
        "processes": 1,
        "metrics": ("psnr", "shape_diversity", "seconds"),
    }
    return Settings(**(given | changes))


def tiny_judges():
    """References with two kinds from a few sides, and balls as the ground truth, which render instantly."""
    gallery = build_gallery(("duck", "mushroom"), azimuths=8, polar_degrees=(70.0,))
    return Judges(gallery, {prompt: _ball(color) for prompt, color in BALLS.items()})


def done_by_hand(label, shades, numbers, *, prompts=PROMPTS[:1], shares=(), together=None, start=None):
    """The results of a loss whose objects have uniformly gray pictures.

    Args:
        label: name of the loss.
        shades: gray of the front at each moment; the left, back and right are lighter by 1, 2 and 3, and each
            further object by 40.
        numbers: metrics of each moment.
        prompts: prompts with one object each.
        shares: shares of the series.
        together: group metrics of the objects.
        start: start of the objects.
    """
    series = Series(
        trial=Trial(label, start=start),
        preset="toybox64",
        budget=1.0,
        prompts=tuple(dict.fromkeys(prompts)),
        seeds=(0,),
        processes=1,
        folder=Path(),
        model=None,
        weights="",
        shares=shares,
    )
    grays = np.add.outer(np.asarray(shades, np.uint8), np.arange(4, dtype=np.uint8))
    sides = np.broadcast_to(grays[..., None, None, None], (*grays.shape, 8, 8, 3))
    objects = [
        Judgment(prompt, index, numbers, sides + np.uint8(40 * index)) for index, prompt in enumerate(prompts)
    ]
    return Done(series, objects, together or {})


def dark_grays(picture):
    """The grays of a picture that are darker than its text, each with its leftmost position."""
    found = {}
    for row, column in np.argwhere((picture < 60).all(axis=-1)):
        shade = int(picture[row, column, 0])
        found[shade] = min(found.get(shade, (row, column)), (row, column), key=lambda place: place[1])
    return found


def _ball(color):
    ball = make_gaussians(
        np.zeros((1, 3)), np.asarray([color]), np.full((1, 3), 0.25), np.asarray([0.99]), capacity=1
    )
    return object_views(ball, likeness_cameras())
