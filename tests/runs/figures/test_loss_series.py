"""Objects of a series: results for prompts without a ground truth, and for several moments of an object."""

import numpy as np
import pytest

from ge3d_jax.metrics.likeness import object_views
from ge3d_jax.runs.evaluate import likeness_cameras
from ge3d_jax.runs.figures.base import Record, remember
from ge3d_jax.runs.figures.loss_series import _FIELDS, Judges, Series, _asked, _Workshop, read_series
from ge3d_jax.runs.trials import Trial
from ge3d_jax.splatting.gaussians import make_gaussians

PROMPT = "a red mushroom"
RED, GREEN = (0.9, 0.1, 0.1), (0.1, 0.9, 0.1)


def ball(color):
    return make_gaussians(
        np.zeros((1, 3)), np.asarray([color]), np.full((1, 3), 0.25), np.asarray([0.99]), capacity=1
    )


def made(*colors, diverged=False):
    """An object that was a ball of a different color at each moment."""
    balls = [ball(color) for color in colors]
    moments = [{"iterations": 5 * (index + 1), "seconds": 1.5 * (index + 1)} for index in range(len(colors))]
    arrays = {name: np.stack([getattr(one, name) for one in balls]) for name in _FIELDS}
    return Record({"diverged": diverged, "moments": moments}, arrays)


@pytest.fixture
def series(tmp_path):
    return Series(
        trial=Trial("ge3d"),
        preset="toybox64",
        budget=None,
        prompts=(PROMPT,),
        seeds=(0, 1),
        processes=1,
        folder=tmp_path,
        model=None,
        weights="",
    )


@pytest.fixture(scope="module")
def truth():
    """A red ball, standing in for the true mushroom."""
    return object_views(ball(RED), likeness_cameras())


def middles(sides):
    """The brightest channel at the center of each side at each moment."""
    return np.argmax(sides[:, :, 64, 64], axis=-1).tolist()


def test_an_object_whose_truth_is_not_known_is_looked_at_alone(series, tiny_gallery, truth):
    for judges in (Judges(None, {}), Judges(None, {PROMPT: truth}), Judges(tiny_gallery, {})):
        judged = _Workshop(series, judges, print).judge(PROMPT, 0, made(RED, GREEN))
        assert judged.numbers["moments"] == [
            {"iterations": 5, "seconds": 1.5},
            {"iterations": 10, "seconds": 3.0},
        ]
        sides = judged.arrays["sides"]
        assert sides.shape == (2, 4, 128, 128, 3) and sides.dtype == np.uint8
        assert middles(sides) == [[0] * 4, [1] * 4]


def test_each_moment_is_judged(series, tiny_gallery, truth):
    workshop = _Workshop(series, Judges(tiny_gallery, {PROMPT: truth}), print)
    judged = workshop.judge(PROMPT, 0, made(RED, GREEN))
    red, green = judged.numbers["moments"]
    assert red["psnr"] == 99.0 and green["psnr"] < 30 and red["overlap"] == green["overlap"] == 1.0
    assert (red["iterations"], green["iterations"]) == (5, 10)
    assert (red["seconds"], green["seconds"]) == (1.5, 3.0)
    assert middles(judged.arrays["sides"]) == [[0] * 4, [1] * 4]


def test_an_object_that_diverged_has_failed(series):
    workshop = _Workshop(series, Judges(None, {}), print)
    judged = workshop.judge(PROMPT, 0, made(RED, diverged=True))
    assert judged.numbers["moments"] == [{"iterations": 5, "seconds": 1.5, "failed": 1.0}]


def test_objects_are_judged_together_at_their_ends(series, truth):
    for seed, colors in ((0, (GREEN, RED)), (1, (GREEN, GREEN))):
        asked = _asked(series, series.asked.settings, PROMPT, seed)
        sides = np.zeros((2, 4, 2, 2, 3), np.uint8)
        judged = Record({"moments": [{"psnr": 1.0}, {"psnr": 2.0 + seed}]}, {"sides": sides})
        remember(series.path(PROMPT, seed), asked, lambda colors=colors: made(*colors))
        remember(series.judged_path(PROMPT, seed), asked, lambda judged=judged: judged)
    done = read_series(series, Judges(None, {PROMPT: truth}))
    assert [(one.prompt, one.seed, one.moments[-1]["psnr"]) for one in done.objects] == [
        (PROMPT, 0, 2.0),
        (PROMPT, 1, 3.0),
    ]
    assert done.together["texture_diversity"] > 0.3 and done.together["shape_diversity"] == 0.0
    assert done.together["shrunken_fid"] > 0
    # Without a ground truth there are no group metrics.
    assert read_series(series, Judges(None, {})).together == {}
