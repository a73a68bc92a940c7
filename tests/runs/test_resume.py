"""Which differences stand in the way of going on with a run."""

import json

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.resume import check_same_run

STARTED = {"prompt": "a cat", "settings": {"views": 4, "views_per_batch": None, "vae_rematerialise": False}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(STARTED))
    return tmp_path


def test_what_only_bounds_memory_may_change(folder):
    settings = STARTED["settings"] | {"views_per_batch": 1, "vae_rematerialise": True}
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
