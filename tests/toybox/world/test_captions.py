"""The caption language: every sentence parses back to itself, and anything else gives a helpful error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.prompts import view_prompts
from ge3d_jax.toybox.world.captions import VIEWS, VOCABULARY, Sentence, caption, explain_unknown, parse
from ge3d_jax.toybox.world.objects import COLORS, KINDS

colors = st.sampled_from(sorted(COLORS))
sentences = st.builds(
    Sentence,
    kind=st.sampled_from(sorted(KINDS)),
    color=colors,
    second_color=st.none() | colors,
    view=st.none() | st.sampled_from(VIEWS),
)


@given(sentences, st.sampled_from([str, str.upper, lambda text: text + ".", str.title]))
def test_sentences_parse_back_in_any_case(sentence, change):
    text = caption(sentence)
    assert parse(change(text)) == sentence
    assert explain_unknown(change(text)) is None
    assert set(text.lower().split()) <= set(VOCABULARY)


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        (Sentence("mushroom", "red"), "a red mushroom"),
        (Sentence("cat", "orange"), "an orange cat"),
        (Sentence("mushroom", "red", "yellow"), "a red mushroom with a yellow stem"),
        (
            Sentence("mushroom", "red", "orange", "side"),
            "The side view of a red mushroom with an orange stem",
        ),
        (Sentence("car", "blue", "orange", "back"), "The back view of a blue car with orange wheels"),
    ],
)
def test_captions_are_english(sentence, text):
    assert caption(sentence) == text


def test_guidance_prompts_are_sentences_with_a_view():
    views = [parse(text).view for text in view_prompts("a red mushroom")]
    assert views == ["front", "side", "back"] and set(VIEWS) == {*views, "overhead"}


def test_unknown_words_are_named_with_those_that_are_known():
    message = explain_unknown("a red dragon on a hill")
    assert message is not None
    for word in ('"dragon"', '"hill"', "mushroom", "purple"):
        assert word in message
    assert '"red"' not in message
    above = "The overhead view of a red house"
    assert explain_unknown(above) is None and parse(above).view == "overhead"
    told = explain_unknown(above, without=("overhead",))
    assert told is not None and '"overhead"' in told and '"view"' not in told


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mushroom",
        "red mushroom",
        "a mushroom red",
        "a red mushroom with",
        "a red mushroom with a yellow",
        "a red mushroom with a yellow roof",
        "a red mushroom a yellow stem",
        "a red mushroom with a yellow stem stem",
        "The front of a red mushroom",
        "The front view of",
    ],
)
def test_known_words_that_do_not_form_a_sentence_are_refused(text):
    with pytest.raises(UserError, match="not a sentence"):
        parse(text)
