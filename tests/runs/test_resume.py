"""Differences that prevent resuming a run."""

import json
import shutil
from functools import partial

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs import resume

STARTED = {"prompt": "a cat", "settings": {"views": 4, "views_per_batch": None, "vae_rematerialize": False}}
check_same_run = partial(resume.check_same_run, say=print)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state" / "1").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(STARTED))
    return tmp_path


def test_what_only_bounds_memory_may_change(folder):
    settings = STARTED["settings"] | {"views_per_batch": 1, "vae_rematerialize": True}
    check_same_run(folder, STARTED | {"settings": settings})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": "a dog"}, "prompt = 'a cat', not 'a dog'"),
        ({"settings": STARTED["settings"] | {"views": 2}}, "settings.views = 4, not 2"),
    ],
)
def test_another_run_is_refused(folder, changed, message):
    with pytest.raises(UserError, match=message):
        check_same_run(folder, STARTED | changed)


VERSIONS = {"versions": {"python": "3.11", "ge3d_jax": "0.1.0"}}


def save(folder, description):
    (folder / "config.json").write_text(json.dumps(description))


def with_settings(**settings):
    return STARTED | {"settings": STARTED["settings"] | settings}


def test_tuples_are_the_lists_of_json(folder):
    save(folder, with_settings(radius=[1.0, 2.0]))
    check_same_run(folder, with_settings(radius=(1.0, 2.0)))
    with pytest.raises(UserError, match=r"settings.radius = \[1.0, 2.0\], not \[1.0, 2.5\]"):
        check_same_run(folder, with_settings(radius=(1.0, 2.5)))


def test_another_version_goes_on_where_its_new_settings_have_their_defaults(folder):
    save(folder, STARTED | VERSIONS)
    new = {"kind": "splats", "rasterizer": "xla", "density": {"every": 0, "tags": ()}}
    description = with_settings(scene=new, attention_chunk=3) | {"versions": {"ge3d_jax": "0.2.0"}}
    check_same_run(folder, description, with_settings(scene=new, views=2))


@pytest.mark.parametrize(
    ("defaults", "remedy"),
    [
        ({"scene": {"density": {"every": 4}}}, "leave it at 4, or start without resume"),
        ({}, "now; start without"),
    ],
)
def test_a_new_setting_with_another_value_is_refused(folder, defaults, remedy):
    save(folder, STARTED | VERSIONS)
    description = with_settings(scene={"density": {"every": 5}})
    with pytest.raises(
        UserError, match="0.1.0 without the setting settings.scene.density.every, which is 5"
    ) as refusal:
        check_same_run(folder, description, with_settings(**defaults))
    assert remedy in str(refusal.value)


def test_new_settings_are_refused_where_no_defaults_are_told(folder):
    with pytest.raises(
        UserError, match="started without the setting settings.every, which is None now; start"
    ):
        check_same_run(folder, with_settings(every=None))


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        (VERSIONS, " by version 0.1.0"),
        ({}, ""),
        ({"versions": {"python": "3.11"}}, ""),
        ({"versions": "1"}, ""),
    ],
)
def test_a_setting_that_is_gone_is_refused(folder, versions, told):
    save(folder, with_settings(nodes={"count": 5}) | versions)
    with pytest.raises(UserError) as refusal:
        check_same_run(folder, STARTED, STARTED)
    assert str(refusal.value) == (
        f"The run in {folder} was started{told} with the setting settings.nodes.count = 5, "
        "which this version does not know; start without resume."
    )


def test_another_kind_is_named_rather_than_the_settings_it_lacks(folder):
    save(folder, with_settings(density={"every": 3, "kind": "split"}))
    wanted = with_settings(density={"kind": "chain", "amount": 2})
    with pytest.raises(UserError, match="settings.density.kind = 'split', not 'chain'"):
        check_same_run(folder, wanted, wanted)


def test_what_only_bounds_memory_may_be_gone(folder):
    check_same_run(folder, STARTED | {"settings": {"views": 4}})


@pytest.mark.parametrize(("text", "message"), [("{", "not readable JSON"), ("[]", "does not describe a run")])
def test_a_strange_file_is_refused(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        check_same_run(folder, STARTED)


def test_a_state_without_its_description_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="a state without its config.json; start without resume"):
        check_same_run(folder, STARTED)


def test_a_run_that_saved_nothing_begins_whatever_it_was_asked_for(folder):
    shutil.rmtree(folder / "state" / "1")
    told = []
    assert not resume.check_same_run(folder, STARTED | {"prompt": "a dog"}, say=told.append)
    assert told == [f"Nothing was saved in {folder}: the run starts over."]
    # An existing object is not discarded.
    (folder / "object.ply").write_text("")
    with pytest.raises(UserError, match="holds an object, but no state to resume from; start without resume"):
        check_same_run(folder, STARTED)


def test_more_iterations_may_be_asked_for(folder):
    save(folder, with_settings(iterations=3))
    assert check_same_run(folder, with_settings(iterations=5))
    with pytest.raises(UserError, match="settings.iterations = 3, not 5"):
        resume.check_described(folder, with_settings(iterations=5))


def test_metrics_count_as_far_as_they_are_whole(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert resume._read_metrics(file) == []
    file.write_text('{"iteration": 1}\n{"iteration": 2}\n{"itera')
    assert resume._read_metrics(file) == [{"iteration": 1}, {"iteration": 2}]
