"""Runs that end with non-finite gradients: the kept results, the messages, and the exit status."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.cli import script
from ge3d_jax.core import devices
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.formats.posed_images import read_posed_images
from ge3d_jax.runs.resume import resume_run
from ge3d_jax.runs.run import Part, Run
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.posed_images import write_posed_images
from ge3d_jax.training.distillation import Distillation
from ge3d_jax.training.fit_config import FitConfig
from ge3d_jax.training.iterations import MOST_SKIPPED
from ge3d_jax.training.photometric import Photometric, begin_fit, views_of
from tests.runs.toy_run import toy_part


@dataclasses.dataclass(frozen=True)
class Failing(Photometric):
    """A fit whose loss is NaN from some iteration on."""

    good: int = 0

    def look(self, scene, learned, perturbations, context, drawn, progress, axis):
        scalar, *rest = super().look(scene, learned, perturbations, context, drawn, progress, axis)
        return jnp.where(progress.iteration < self.good, 1.0, jnp.nan) * scalar, *rest


def perform(folder, views, *, iterations, good):
    config = with_overrides(
        FitConfig(),
        {
            "iterations": iterations,
            "views": 1,
            "start.count": 20,
            "start.sh_degree": 0,
            "scene.capacity": 20,
            "density.every": 0,
            "buffer_capacity": 4096,
        },
    )
    written = []

    def write(result, attempts):
        written.append(result.object)

    run = Run(
        folder=folder,
        description={},
        task=Failing(config, good=good),
        context=views,
        parts=1,
        history=[],
        is_new=True,
    )
    state = begin_fit(config, jax.random.key(0))
    part = Part(run, state, [], lambda folder: None, write)
    outcome = part.perform(doing="fitting", progress=False, save_seconds=None)
    return outcome, written, state, config


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mushroom")
    write_posed_images(folder, Sentence("mushroom", "red"), views=2, test_views=1, size=16, seed=0)
    return views_of(read_posed_images(folder)[0], 1.0)


# One run ends early, the other at its last iteration, where it could be mistaken for a finished run.
@pytest.mark.parametrize("left", [10, 0])
def test_a_diverged_run_keeps_its_last_good_object_and_its_state(views, tmp_path, left):
    ended = 3 + MOST_SKIPPED
    outcome, written, first, config = perform(tmp_path, views, iterations=ended + left, good=3)
    assert outcome.result.diverged and not outcome.result.interrupted
    assert len(outcome.history) == ended and sum(line["skipped"] for line in outcome.history) == MOST_SKIPPED
    (sentence,) = outcome.advice
    assert f"The last {MOST_SKIPPED} steps" in sentence and f"stopped after {ended} iterations" in sentence
    assert sentence.endswith("Lower the learning rates.")
    (gaussians,) = written
    assert np.isfinite(gaussians.positions).all()
    assert not np.array_equal(gaussians.positions, first.scene.gaussians.positions)
    saved, history = resume_run(tmp_path, first, config.scene, last=config.iterations)
    assert int(saved.iteration) == ended and len(history) == ended
    np.testing.assert_array_equal(saved.scene.gaussians.positions, gaussians.positions)
    assert int(saved.optimizer_state.count) == 3


def test_a_run_that_fails_at_its_end_for_too_short_to_tell_is_finished(views, tmp_path):
    outcome, written, *_ = perform(tmp_path, views, iterations=MOST_SKIPPED, good=1)
    assert not outcome.result.diverged and not outcome.result.interrupted
    assert outcome.advice == [] and len(written) == 1


def test_a_distillation_that_diverged_is_told_its_settings():
    assert "guidance.scale" in Distillation(None).steadier and "float32" in Distillation(None).steadier


@pytest.fixture
def _as_a_script(monkeypatch):
    """Run as a script without flags; JAX is already running, so the number of cores is left alone."""
    monkeypatch.setattr(sys, "argv", ["script.py"])
    monkeypatch.setattr(devices, "use_processor_cores", lambda: None)


@pytest.mark.usefixtures("_as_a_script")
@pytest.mark.parametrize(("failed", "status"), [(False, 0), (True, 1)])
def test_scripts_say_at_the_end_what_there_is_to_say(failed, status, capsys):
    with pytest.raises(SystemExit) as exit_info:
        script.run(lambda: script.conclude(["One.", "Another."], failed=failed))
    assert exit_info.value.code == status
    said = capsys.readouterr()
    assert (said.err if failed else said.out) == "One.\nAnother.\n"
    assert (said.out if failed else said.err) == ""


@pytest.mark.usefixtures("_as_a_script")
def test_scripts_without_a_word_end_well():
    with pytest.raises(SystemExit) as exit_info:
        script.run(lambda: None)
    assert exit_info.value.code == 0


@pytest.mark.parametrize("progress", [True, False])
def test_what_cannot_be_saved_is_told_also_where_no_progress_is(tmp_path, capfd, progress):
    (tmp_path / "state").write_text("in the way")
    toy_part(tmp_path, []).perform(doing="toying", progress=progress, save_seconds=0.0)
    told = capfd.readouterr().err
    assert told.count("The state could not be saved (File exists)") == 1
    assert ("compiling" in told) is progress
