"""Edits in the Toybox world: changed and unchanged parts of the sentence and of the picture."""

from dataclasses import replace

import numpy as np
import pytest

from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.edits import EDITS, draw_edits
from ge3d_jax.toybox.world.objects import KINDS


@pytest.fixture(scope="module")
def edits():
    return draw_edits(3, 4)


def test_there_are_so_many_of_each_kind_and_more_do_not_change_them(edits):
    assert len(edits) == 4 * len(EDITS) == 40
    assert [edit.name for edit in edits[:10]] == list(EDITS)
    assert draw_edits(3, 2) == edits[:20]
    assert draw_edits(4, 2) != edits[:20]
    assert len({edit.source.kind for edit in edits}) > 5


def test_sentences_are_sentences_of_the_world(edits):
    for edit in edits:
        assert tuple(map(parse, edit.prompts)) == (edit.source, edit.target)
        assert edit.source != edit.target
        assert KINDS[edit.source.kind].has_front


# The parts of the sentence that each kind of edit changes.
CHANGED = {
    "color": {"color"},
    "part": {"second_color"},
    "both colors": {"color", "second_color"},
    "swap": {"color", "second_color"},
    "add": {"second_color"},
    "take away": {"second_color"},
    "kind": {"kind"},
    "kind and color": {"kind", "color"},
    "view": {"view"},
    "background": {"color"},
}


@pytest.mark.parametrize("name", list(EDITS))
def test_an_edit_changes_what_its_name_says(edits, name):
    for edit in [edit for edit in edits if edit.name == name]:
        fields = ("kind", "color", "second_color", "view")
        assert {f for f in fields if getattr(edit.source, f) != getattr(edit.target, f)} == CHANGED[name]
        if name == "swap":
            assert (edit.source.color, edit.source.second_color) == (
                edit.target.second_color,
                edit.target.color,
            )
        assert (edit.source.second_color is None) == (
            name not in ("part", "both colors", "swap", "take away")
        )
        assert (edit.target.second_color is None) == (name not in ("part", "both colors", "swap", "add"))
        assert edit.azimuths == ((0.0, 90.0) if name == "view" else edit.azimuths[:1] * 2)
        assert abs(edit.azimuths[0]) <= 60
        # An unnamed part color is the usual one, so a new color must differ from it.
        usual = {KINDS[sentence.kind].part_color for sentence in (edit.source, edit.target)}
        assert edit.source.color not in usual and edit.target.second_color not in usual
        assert (edit.background == (1.0, 1.0, 1.0)) == (name != "background")


def test_the_truth_differs_where_the_sentence_does(edits):
    part = next(edit for edit in edits if edit.name == "part")
    source, truth = part.pictures(32)
    assert source.shape == truth.shape == (32, 32, 3)
    same = np.abs(source - truth).max(axis=-1) < 1e-4
    # The background and the rest of the object stay the same.
    assert 0.5 < same.mean() < 1.0
    np.testing.assert_allclose(source[0, 0], 1.0, atol=1e-6)
    behind = next(edit for edit in edits if edit.name == "background")
    np.testing.assert_allclose(behind.pictures(32)[1][0, 0], behind.background, atol=1e-6)
    # A different side of the same object gives a different picture.
    turned = replace(part, target=part.source, azimuths=(0.0, 90.0))
    first, second = turned.pictures(32)
    assert np.abs(first - second).max() > 0.3
