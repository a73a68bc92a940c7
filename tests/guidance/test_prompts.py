"""View prompts and Perp-Neg: geometry of the projection, weights at and between the named views."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.guidance import prompts
from tests.guidance import golden

FRONT, SIDE, BACK = (jnp.full((2, 3), value) for value in (1.0, 2.0, 4.0))
EMBEDDINGS = prompts.PromptEmbeddings(FRONT, SIDE, BACK, *jnp.zeros((3, 2, 3)))


def _at(degrees: float):
    positive, negatives, weights = prompts.perp_neg_embeddings(
        EMBEDDINGS, jnp.deg2rad(jnp.array([degrees], jnp.float32))
    )
    # Constant embeddings: a single number identifies the view.
    return float(positive[0, 0, 0]), np.asarray(negatives[0, :, 0, 0]), np.asarray(weights[0])


def _expected(degrees: float):
    """The formulas, evaluated one case at a time."""
    distance = abs((degrees + 180) % 360 - 180)
    if distance < 90:
        r = 1 - distance / 90
        weights = (
            0.0 if r > 0.8 else -2 * np.exp(-2 * r),
            0.0 if r < 0.2 else -2 * np.exp(-10 * (1 - r)),
        )
        return r * 1.0 + (1 - r) * 2.0, (1.0, 2.0), weights
    r = 1 - (distance - 90) / 90
    return r * 2.0 + (1 - r) * 4.0, (2.0, 1.0), (0.0 if r > 0.8 else -1 * np.exp(-10 * r), -2.0)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-720, 720).filter(
        lambda a: all(abs(abs((a + 180) % 360 - 180) - e) > 0.01 for e in (18, 72, 90, 108))
    )
)
def test_weights_and_mixtures_follow_the_formulas(degrees):
    positive, negatives, weights = _at(degrees)
    expected_positive, expected_negatives, expected_weights = _expected(degrees)
    assert positive == pytest.approx(expected_positive, abs=1e-4)
    np.testing.assert_array_equal(negatives, expected_negatives)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-4)


@pytest.mark.parametrize(
    ("degrees", "positive", "weight_of_front", "weight_of_side"),
    [(0.0, 1.0, 0.0, -2.0), (90.0, 2.0, -2.0, 0.0), (180.0, 4.0, -2.0, -1.0), (-90.0, 2.0, -2.0, 0.0)],
)
def test_named_views(degrees, positive, weight_of_front, weight_of_side):
    mixed, negatives, weights = _at(degrees)
    by_view = {int(view): weight for view, weight in zip(negatives, weights, strict=True)}
    assert mixed == pytest.approx(positive, abs=1e-5)
    assert by_view[1] == pytest.approx(weight_of_front, abs=1e-5)
    assert by_view[2] == pytest.approx(weight_of_side, abs=1e-5)


@pytest.mark.parametrize("degrees", [-179.9, -90.0, -33.0, 0.0, 45.0, 90.0, 150.0, 180.0, 300.0])
def test_nothing_but_small_changes_across_small_angles_where_no_threshold_lies(degrees):
    before, after = _at(degrees - 0.01), _at(degrees + 0.01)
    assert before[0] == pytest.approx(after[0], abs=1e-3)

    def sum_by_view(result):
        return {view: result[2][list(result[1]).index(view)] for view in (1.0, 2.0)}

    for view in (1.0, 2.0):
        assert sum_by_view(before)[view] == pytest.approx(sum_by_view(after)[view], abs=5e-3)


def test_a_source_s_texts_follow_the_same_rule():
    told = dataclasses.replace(EMBEDDINGS, source=EMBEDDINGS)
    azimuth = jnp.deg2rad(jnp.array([30.0, 100.0, 170.0]))
    text = prompts.view_texts(told, azimuth, use_perp_neg=True, weight=-1.0, rule="threestudio")
    plain = prompts.view_texts(EMBEDDINGS, azimuth, use_perp_neg=True)
    np.testing.assert_array_equal(text.source.weights, text.weights)
    assert not np.allclose(text.weights, plain.weights)


def _by_view(views, weights):
    """(N, 3), the weights of the front, the side and the back."""
    table = np.zeros((len(views), 3))
    np.put_along_axis(table, np.asarray(views, int), np.asarray(weights), axis=1)
    return table


@pytest.mark.parametrize(
    ("variant", "rule", "weight"),
    [
        ("original", "original", -2.0),
        ("original_w3", "original", -3.0),
        ("luciddreamer", "original", -2.0),
        ("ge3d", "original", -2.0),
        ("threestudio", "threestudio", -2.0),
    ],
)
def test_views_weigh_what_the_authors_let_them_weigh(variant, rule, weight):
    tables = golden.load_tables("perp_neg_weights")
    units = jnp.eye(3)[:, None]
    azimuth = jnp.deg2rad(tables["azimuth_degrees"])
    texts = prompts.view_texts(
        prompts.PromptEmbeddings(*units, *units), azimuth, use_perp_neg=True, weight=weight, rule=rule
    )
    np.testing.assert_allclose(texts.positive[:, 0], tables[f"{variant}/positive"], atol=2e-6)
    found = _by_view(np.argmax(texts.avoided[:, :, 0], axis=-1), texts.weights)
    expected = _by_view(tables[f"{variant}/negatives"], tables[f"{variant}/weights"])
    # Rounding may move an azimuth to the other side of a threshold.
    share = np.abs((tables["azimuth_degrees"] + 180) % 360 - 180) / 90 % 1
    is_clear = (np.abs(share[:, None] - [0.2, 0.8]) > 1e-6).all(axis=1)
    assert is_clear.sum() > 160
    np.testing.assert_allclose(found[is_clear], expected[is_clear], atol=2e-6)


def test_each_text_lands_in_its_place():
    seen: list[str] = []

    def encode(texts):
        seen.extend(texts)
        return jnp.arange(len(texts), dtype=jnp.float32)[:, None, None] * jnp.ones((1, 2, 3))

    embeddings = prompts.embed_prompt(encode, "a red robot", negative_prompt="ugly")
    assert seen == [*prompts.view_prompts("a red robot"), "a red robot", "ugly", ""]
    fields = ("front", "side", "back", "plain", "negative", "empty")
    assert [float(getattr(embeddings, field)[0, 0]) for field in fields] == [0, 1, 2, 3, 4, 5]
    assert seen[0] == "The front view of a red robot" and embeddings.overhead is None
    seen.clear()
    both = prompts.embed_prompt(
        encode, "a red robot", negative_prompt="", source_prompt="a red car", use_overhead=True
    )
    assert seen[6] == "The overhead view of a red car" and seen[13] == "The overhead view of a red robot"
    assert float(both.overhead[0, 0]) == float(both.source.overhead[0, 0]) == 6.0


def test_texts_of_views_have_views_to_avoid_with_perp_neg_alone():
    embeddings = prompts.PromptEmbeddings(
        *(jnp.full((2, 3), value) for value in (1.0, 2.0, 4.0, 5.0, 6.0, 7.0))
    )
    azimuth = jnp.deg2rad(jnp.array([0.0, 180.0]))
    wanted = prompts.perp_neg_embeddings(embeddings, azimuth, weight=-1.5)
    with_views = prompts.view_texts(embeddings, azimuth, use_perp_neg=True, weight=-1.5)
    got = (with_views.positive, with_views.avoided, with_views.weights)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    texts = (with_views.plain, with_views.negative, with_views.empty)
    assert [float(text[0, 0]) for text in texts] == [5.0, 6.0, 7.0]
    without = prompts.view_texts(embeddings, azimuth, use_perp_neg=False, weight=-1.5)
    assert without.avoided.shape == (2, 0, 2, 3) and without.weights.shape == (2, 0)


def test_the_text_says_how_high_the_camera_is_where_the_model_knows():
    values = {"front": 1.0, "side": 2.0, "back": 4.0, "plain": 5.0, "negative": 6.0, "empty": 7.0}
    arrays = {name: jnp.full((2, 3), value) for name, value in values.items()}
    silent = prompts.PromptEmbeddings(**arrays, source=prompts.PromptEmbeddings(**arrays))
    above = jnp.full((2, 3), 10.0)
    told = silent.replace(overhead=above, source=silent.source.replace(overhead=2.0 * above))
    azimuth = jnp.zeros(5)
    polar = jnp.deg2rad(jnp.array([100.0, 90.0, 60.0, 30.0, 10.0]))
    share = np.array([0.0, 0.0, 0.25, 0.5, 0.5])
    texts = prompts.view_texts(told, azimuth, use_perp_neg=True, polar=polar)
    np.testing.assert_allclose(texts.positive[:, 0, 0], 1.0 + share * 9.0, rtol=1e-6)
    np.testing.assert_allclose(texts.source.positive[:, 0, 0], 1.0 + share * 19.0, rtol=1e-6)
    for embeddings, angles in ((silent, polar), (told, None)):
        plain = prompts.view_texts(embeddings, azimuth, use_perp_neg=True, polar=angles)
        np.testing.assert_array_equal(plain.positive, jnp.ones((5, 2, 3)))
        np.testing.assert_array_equal(plain.avoided, texts.avoided)
