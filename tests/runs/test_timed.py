"""Timed objects: their results, excluded times, and the number of iterations that fit a budget."""

import time

import numpy as np
import pytest

import ge3d_jax
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.runs.timed import REHEARSED, Studio
from ge3d_jax.training.length import lasting
from ge3d_jax.training.presets import configured
from tests.tiny_model import IMAGE_SIZE

PROMPT = "a red mushroom"
SMALL = {
    "iterations": 6,
    "views": 2,
    "image_size": IMAGE_SIZE,
    "start.kind": "ball",
    "start.count": 50,
    "guidance.kind": "sds",
    "buffer_capacity": 4096,
    "scene.density.kind": "relocate",
    "scene.density.first": 2,
    "scene.density.last": 5,
    "scene.density.every": 2,
}
SETTINGS = with_overrides(configured("toybox64"), SMALL)


@pytest.fixture(scope="module")
def studio(model):
    return Studio(load_model(model))


@pytest.fixture(scope="module")
def timed(studio):
    begun = time.monotonic()
    made = studio.make(PROMPT, 3, SETTINGS, moments={2, 5})
    return made, time.monotonic() - begun


def test_the_object_is_that_of_generate(timed, model, tmp_path):
    run = ge3d_jax.generate(
        PROMPT,
        preset="toybox64",
        seed=3,
        model=model,
        out=tmp_path,
        overrides=SMALL,
        preview_every=0,
        progress=False,
    )
    made, _ = timed
    for name in ("positions", "log_scales", "sh", "opacity_logits"):
        np.testing.assert_array_equal(getattr(made.gaussians, name), getattr(run.gaussians, name), name)
    assert (made.iterations, made.diverged) == (6, False)


def test_seconds_leave_compiling_out(timed, studio):
    made, all_seconds = timed
    assert 0 < made.seconds < 0.2 * all_seconds
    begun = time.monotonic()
    again = studio.make("a blue duck", 4, SETTINGS)
    assert 0 < again.seconds <= time.monotonic() - begun
    assert not np.allclose(again.gaussians.sh, made.gaussians.sh)


def test_moments_are_the_object_on_the_way(timed, studio):
    made, _ = timed
    assert [one.iteration for one in made.moments] == [2, 5]
    first, second = made.moments
    assert 0 < first.seconds < second.seconds < made.seconds
    # Recorded moments are not affected by later iterations.
    assert not np.allclose(first.gaussians.positions, second.gaussians.positions)
    assert not np.allclose(second.gaussians.positions, made.gaussians.positions)
    plain = studio.make(PROMPT, 3, SETTINGS)
    np.testing.assert_array_equal(plain.gaussians.positions, made.gaussians.positions)


class StopsAfter(list):
    """Moments that end the run at the only moment, like Ctrl-C."""

    def __contains__(self, done):
        if done in tuple(self):
            raise KeyboardInterrupt
        return False


def test_a_run_that_is_stopped_gives_nothing(studio):
    with pytest.raises(KeyboardInterrupt):
        studio.make(PROMPT, 3, SETTINGS, moments=StopsAfter([4]))


def test_as_many_iterations_as_fit_the_time(studio):
    pace = studio.pace(PROMPT, SETTINGS, 1000.0)
    assert pace.iterations == int(1000.0 / pace.seconds_per_iteration) > 1
    rehearsed = studio.make(PROMPT, 0, lasting(SETTINGS, REHEARSED))
    assert rehearsed.iterations == 20
    # A busy machine may be several times slower, but not by orders of magnitude.
    assert 0.1 < pace.seconds_per_iteration / (rehearsed.seconds / 20) < 10
    with pytest.raises(UserError, match=r"budget of 1e-06 seconds is too short: one iteration takes \d"):
        studio.pace(PROMPT, SETTINGS, 1e-6)


def test_a_stage_whose_time_cannot_be_told_apart_is_refused(studio):
    with pytest.raises(UserError, match=r"leave\s+reconstruction.start out"):
        studio.make(PROMPT, 0, with_overrides(SETTINGS, {"reconstruction.start": 0.5}))


def test_what_is_compiled_on_the_way_is_left_out_too(studio):
    # The splats outgrow their initial buffer.
    growing = {"scene.density.kind": "clone_split", "gradient_threshold": 0.0, "first": 2, "every": 2}
    grown = with_overrides(SETTINGS, growing | {"density.last": 4, "scene.capacity": 800})
    begun = time.monotonic()
    made = studio.make(PROMPT, 3, grown, moments={5})
    all_seconds = time.monotonic() - begun
    assert made.iterations == 6 and made.gaussians.capacity > 50
    assert made.moments[0].seconds < made.seconds < 0.3 * all_seconds
