"""Prompts must be in a model's vocabulary."""

import json

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.request import TOYBOX_MARKER, check_prompt, knows_overhead
from ge3d_jax.toybox.world.captions import VIEWS

ABOVE = "The overhead view of a red house"


def marked(folder, **said):
    folder.mkdir()
    (folder / TOYBOX_MARKER).write_text(json.dumps({"language": "toybox", **said}))
    return folder


def test_a_model_knows_the_views_that_it_was_told(tmp_path):
    told, not_told = marked(tmp_path / "told", views=VIEWS), marked(tmp_path / "not_told")
    assert knows_overhead(told) and not knows_overhead(not_told)
    check_prompt(ABOVE, told)
    check_prompt("The front view of a red house", not_told)
    with pytest.raises(UserError, match='does not know "overhead"'):
        check_prompt(ABOVE, not_told)


def test_another_model_knows_all_words_and_is_not_told_the_height(tmp_path):
    check_prompt("an overhead photo of a corgi", tmp_path)
    assert not knows_overhead(tmp_path)
    with pytest.raises(UserError, match="no words"):
        check_prompt(" . ", tmp_path)
