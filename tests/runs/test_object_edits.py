"""Edits of existing objects: the source is kept when resuming, and invalid requests are rejected."""

import json

import numpy as np
import pytest

import ge3d_jax
from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.runs.asked import asked_by_preset
from ge3d_jax.runs.object_request import ObjectRequest
from ge3d_jax.runs.observers import Observer
from ge3d_jax.runs.sweep import sweep
from tests.tiny_model import IMAGE_SIZE

SOURCE, TARGET = "a red mushroom", "a blue mushroom"
SMALL = {"iterations": 3, "views": 1, "image_size": IMAGE_SIZE, "nodes.count": 2}


class DiesAt(Observer):
    """Aborts a run after an iteration."""

    def __init__(self, number):
        self.number = number

    def on_iteration(self, done, numbers, state):
        if done == self.number:
            raise RuntimeError
        return False


def make(model, out, prompt=TARGET, overrides=None, **given):
    settings = {**SMALL, **(overrides or {})}
    return ge3d_jax.generate(
        prompt, model=model, out=out, overrides=settings, preview_every=0, progress=False, **given
    )


@pytest.fixture(scope="module")
def start(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("source")
    make(model, out, SOURCE, {"iterations": 1, "start.kind": "ball", "start.count": 50})
    return out / "object.ply"


@pytest.fixture(scope="module")
def edited(model, start, tmp_path_factory):
    return make(model, tmp_path_factory.mktemp("edited"), start=start, edit_from=SOURCE)


def config_of(result):
    return json.loads((result.folder / "config.json").read_text())


def test_an_edit_compares_with_the_source_unless_told_otherwise(model, start, edited, tmp_path):
    config = config_of(edited)
    assert config["settings"]["guidance"]["inversion"] == "delta"
    assert config["edit_from"] == SOURCE and len(config["start_sha256"]) == 64
    other = make(
        model,
        tmp_path,
        start=start,
        edit_from=SOURCE,
        overrides={"guidance.inversion": "direct", "iterations": 1},
    )
    config = config_of(other)
    assert config["settings"]["guidance"]["inversion"] == "direct" and "start_sha256" not in config


def test_an_edit_to_what_is_there_leaves_it(model, start, edited, tmp_path):
    same = make(model, tmp_path, SOURCE, start=start, edit_from=SOURCE)
    # Adam turns rounding errors into steps, so only the first iteration is predictable.
    assert same.metrics[0]["gradient_norm"] < 1e-4 < 1e-3 < edited.metrics[0]["gradient_norm"]


def test_a_stopped_edit_goes_on_with_the_same_source(model, start, edited, tmp_path):
    given = {"start": start, "edit_from": SOURCE, "save_seconds": 0}
    with pytest.raises(RuntimeError):
        make(model, tmp_path, **given, observers=[DiesAt(3)])
    resumed = make(model, tmp_path, **given, resume=True)
    assert [line["iteration"] for line in resumed.metrics] == [1, 2, 3]
    assert (tmp_path / "object.ply").read_bytes() == (edited.folder / "object.ply").read_bytes()


def test_a_run_does_not_go_on_with_another_source(model, edited, start, tmp_path):
    own = tmp_path / "own.ply"
    own.write_bytes(start.read_bytes())
    out = tmp_path / "out"
    make(model, out, start=own, edit_from=SOURCE)
    own.write_bytes((edited.folder / "object.ply").read_bytes())
    with pytest.raises(UserError, match="was started with start_sha256"):
        make(model, out, start=own, edit_from=SOURCE, overrides={"iterations": 4}, resume=True)


def test_the_source_is_what_the_run_begins_with(model, start, tmp_path):
    def request(**changes):
        asked = asked_by_preset(
            "toybox64",
            guidance=None,
            density=None,
            start=str(start),
            overrides={**SMALL, "guidance.inversion": "delta"},
        ).but(prompt=TARGET, edit_from=SOURCE, **changes)
        return ObjectRequest.checked(asked, model, out=tmp_path)

    one = request()
    context = one.context(load_model(model))
    part = one.part(context, resume=False, preview_every=0)
    for source, begun in zip(
        (context.source.gaussians.positions, context.source.gaussians.sh),
        (part.state.scene.gaussians.positions, part.state.scene.gaussians.sh),
        strict=True,
    ):
        np.testing.assert_array_equal(source, begun)
        # The state's own arrays are donated at each step.
        assert source.unsafe_buffer_pointer() != begun.unsafe_buffer_pointer()


def test_a_comparison_without_a_source_is_refused(model, start, tmp_path):
    told = "edit_from is not given"
    delta = {"guidance.inversion": "delta"}
    with pytest.raises(UserError, match=told):
        make(model, tmp_path, overrides=delta)
    with pytest.raises(UserError, match=told):
        make(model, tmp_path, overrides=delta, start=start)
    with pytest.raises(UserError, match=told):
        sweep(TARGET, model=model, out=tmp_path, overrides={**SMALL, **delta}, start=start, progress=False)
    with pytest.raises(UserError, match="no object to edit"):
        make(model, tmp_path, edit_from=SOURCE)
    assert not (tmp_path / "config.json").exists()
