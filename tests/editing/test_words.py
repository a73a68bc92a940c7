"""Alignment of prompts and word schedules, identical to the authors' arrays, and plain-language input."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ge3d_jax.core.errors import UserError
from ge3d_jax.editing.control import WordEdit
from ge3d_jax.editing.plain import read_blend, read_words
from ge3d_jax.editing.words import (
    align,
    cross_gates,
    emphasis,
    find_words,
    matching,
    refinement,
    replacement,
    self_gates,
    token_words,
)
from tests.editing import golden

L = golden.TOKENS
STORED = golden.arrays("alignment")


@pytest.fixture(scope="module")
def tokenizer():
    return golden.model().tokenizer


@pytest.mark.parametrize("case", range(len(STORED["replace.prompts"])))
def test_replacement(tokenizer, case):
    source, target = STORED["replace.prompts"][case].tolist()
    np.testing.assert_array_equal(replacement(tokenizer, source, target, L), STORED["replace.mapper"][case])


def test_unequal_words_are_sent_to_the_other_form(tokenizer):
    with pytest.raises(UserError, match="3 words and .* has 7.*form refine"):
        replacement(tokenizer, *golden.prompts("refine"), L)


def test_refinement(tokenizer):
    stored = golden.arrays("ddim_p2p")
    mapping, share = refinement(tokenizer, *golden.prompts("refine"), L)
    np.testing.assert_array_equal(share, stored["refine.alpha"])
    np.testing.assert_array_equal(np.where(share > 0, mapping.argmax(axis=0), -1), stored["refine.M"])
    np.testing.assert_array_equal(mapping.sum(axis=0), share)


def test_words_emphasis_and_gates(tokenizer):
    for (prompt, word), positions in zip(STORED["words.queries"], STORED["words.positions"], strict=True):
        np.testing.assert_array_equal(find_words(tokenizer, str(prompt), str(word), L), positions)
    for name in ("equalizer0", "equalizer1"):
        factors = dict(zip(STORED[f"{name}.words"].tolist(), STORED[f"{name}.values"].tolist(), strict=True))
        found = emphasis(tokenizer, str(STORED[f"{name}.prompt"]), factors, L)
        np.testing.assert_array_equal(found, STORED[f"{name}.result"])
    for name in ("gates0", "gates1", "gates2", "gates3"):
        spec = json.loads(str(STORED[f"{name}.spec"]))
        spec = spec if isinstance(spec, dict) else {"default_": spec}
        spans = {key: tuple(span) if isinstance(span, list) else span for key, span in spec.items()}
        span = spans.pop("default_")
        target, steps = str(STORED[f"{name}.prompts"][1]), int(STORED[f"{name}.steps"])
        found = cross_gates(tokenizer, target, span, spans, steps=steps, length=L)
        np.testing.assert_array_equal(found, STORED[f"{name}.result"])


def test_self_attention_has_a_schedule_of_whole_steps():
    for name, file in (("", "ddim_p2p"), ("p2p.", "ddpm")):
        share, steps = (0.6, 50) if file == "ddim_p2p" else (0.2, 20)
        first, last = golden.arrays(file)[f"color.{name}self_steps"]
        gates = self_gates(share, steps=steps)
        np.testing.assert_array_equal(np.flatnonzero(gates), np.arange(first, last))
    np.testing.assert_array_equal(np.flatnonzero(self_gates((0.29, 0.61), steps=10)), [2, 3, 4, 5])


def test_matching_shifts_the_padding_and_pairs_equal_lengths(tokenizer):
    mapping, share = matching(tokenizer, *golden.prompts("refine"), L)
    np.testing.assert_array_equal(np.flatnonzero(share == 0), [4, 5, 6, 7])
    np.testing.assert_array_equal(mapping.argmax(axis=0)[8:], np.arange(4, L - 4))
    mapping, share = matching(tokenizer, *golden.prompts("color"), L)
    np.testing.assert_array_equal(mapping, np.eye(L))
    assert share.all()


def test_runs_of_unequal_length_have_no_counterpart(tokenizer):
    mapping, share = matching(tokenizer, "a red car", "a dark blue car", L)
    np.testing.assert_array_equal(share == 0, find_words(tokenizer, "a dark blue car", "dark blue", L))
    np.testing.assert_array_equal(mapping.sum(axis=0), share)


def test_what_is_beyond_the_end_of_a_truncated_prompt_is_nowhere(tokenizer):
    mapping, share = refinement(tokenizer, "a red car", "a car", 3)
    np.testing.assert_array_equal(share, [1, 1, 0])
    np.testing.assert_array_equal(mapping, np.diag(share))
    np.testing.assert_array_equal(find_words(tokenizer, "a red car", "red car", 3), [False, False, True])


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_an_alignment_is_monotone_and_as_good_as_any(source, target):
    positions = align(source, target)
    paired = [(position, new) for position, new in zip(positions, target, strict=True) if position >= 0]
    assert all(first[0] < second[0] for first, second in zip(paired, paired[1:], strict=False))
    score = sum(1 if source[position] == new else -1 for position, new in paired)
    # The longest common subsequence, by its recursion: pairing different tokens never pays off.
    best = np.zeros((len(source) + 1, len(target) + 1), int)
    for i, old in enumerate(source):
        for j, new in enumerate(target):
            best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], best[i, j] + (old == new))
    assert score == best[-1, -1]


def test_words_that_are_not_there(tokenizer):
    for ask in (
        lambda: emphasis(tokenizer, "a red car", {"stem": 2.0}, L),
        lambda: cross_gates(tokenizer, "a red car", 0.4, {"stem": 0.5}, steps=5, length=L),
    ):
        with pytest.raises(UserError, match="'stem' are not in the prompt 'a red car'"):
            ask()
    with pytest.raises(UserError, match="between 0 and 1"):
        self_gates(1.2, steps=5)


def test_a_word_is_found_beside_punctuation_and_in_a_row(tokenizer):
    found = find_words(tokenizer, "A red car, a red pig.", "red PIG", L)
    assert found.sum() >= 2 and found[2] == 0
    words = token_words(tokenizer, "a red car", L)
    assert words == [("a", [1]), ("red", [2]), ("car", [3])]
    assert token_words(tokenizer, "a red car", 4) == [("a", [1]), ("red", [2])]


def test_plain_language():
    edit = read_words("blue x2, yellow stem until 0.6, car x-1.5 from 0.1 until .5", WordEdit(cross=0.3))
    assert edit.factors == {"blue": 2.0, "car": -1.5} and edit.cross == 0.3
    assert edit.spans == {"yellow stem": (0.0, 0.6), "car": (0.1, 0.5)}
    # Without an end, they last to the end of the steps.
    assert read_words("blue from 0.2", WordEdit()).spans == {"blue": (0.2, 1.0)}
    assert read_blend("mushroom, yellow stem, not red") == (("mushroom", "yellow stem"), ("red",))
    for wrong, says in (("blue", "does not say what to do"), ("blue x2,", "comma")):
        with pytest.raises(UserError, match=says):
            read_words(wrong, WordEdit())
    with pytest.raises(UserError, match="where the picture may change"):
        read_blend("not red")
    with pytest.raises(UserError, match="refine, replace, match"):
        WordEdit(form="swap")
