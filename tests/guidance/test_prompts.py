"""View prompts and Perp-Neg: geometry of the projection, weights at and between the named views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.guidance import prompts

FRONT, SIDE, BACK = (jnp.full((2, 3), value) for value in (1.0, 2.0, 4.0))
EMBEDDINGS = prompts.ViewEmbeddings(FRONT, SIDE, BACK, jnp.zeros((2, 3)), jnp.zeros((2, 3)))


def _at(degrees: float):
    positive, negatives, weights = prompts.perp_neg_embeddings(
        EMBEDDINGS, jnp.deg2rad(jnp.array([degrees], jnp.float32))
    )
    # Constant embeddings: one number says which view it is.
    return float(positive[0, 0, 0]), np.asarray(negatives[0, :, 0, 0]), np.asarray(weights[0])


def _expected(degrees: float):
    """The formulas, one case at a time."""
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


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0, 20))
def test_perp_neg_at_weight_zero_is_plain_guidance(seed, scale):
    empty, positive, first, second = jax.random.normal(jax.random.key(seed), (4, 3, 4, 4, 2))
    negatives = jnp.stack([first, second], axis=1)
    guided = prompts.perp_neg_epsilon(empty, positive, negatives, jnp.zeros((3, 2)), scale)
    np.testing.assert_allclose(
        guided, prompts.classifier_free_epsilon(empty, positive, scale), rtol=1e-6, atol=1e-5
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_what_perp_neg_adds_is_perpendicular_to_the_text(seed):
    empty, positive, first, second = jax.random.normal(jax.random.key(seed), (4, 3, 4, 4, 2))
    negatives = jnp.stack([first, second], axis=1)
    weights = jnp.array([[-2.0, -1.0], [0.0, -2.0], [-0.3, 0.0]])
    guided = prompts.perp_neg_epsilon(empty, positive, negatives, weights, 7.5)
    added = guided - prompts.classifier_free_epsilon(empty, positive, 7.5)
    along = jnp.sum(added * (positive - empty), axis=(1, 2, 3))
    np.testing.assert_allclose(along, 0.0, atol=1e-3)
    assert float(jnp.min(jnp.sum(added**2, axis=(1, 2, 3)))) > 1.0


def test_a_negative_along_the_text_adds_nothing_and_samples_stay_apart():
    empty, positive = jax.random.normal(jax.random.key(0), (2, 2, 3, 3, 1))
    along = empty + 0.5 * (positive - empty)
    guided = prompts.perp_neg_epsilon(
        empty, positive, jnp.stack([along, along], axis=1), jnp.full((2, 2), -2.0), 7.5
    )
    np.testing.assert_allclose(guided, prompts.classifier_free_epsilon(empty, positive, 7.5), atol=1e-4)


def test_a_text_that_changes_nothing_stays_finite():
    empty = jnp.ones((1, 2, 2, 1))
    guided = prompts.perp_neg_epsilon(
        empty, empty, jnp.ones((1, 2, 2, 2, 1)) * 3, jnp.full((1, 2), -2.0), 7.5
    )
    assert bool(jnp.all(jnp.isfinite(guided)))


@pytest.mark.parametrize(("noising_prompt", "text"), [("negative", "ugly"), ("empty", "")])
def test_each_text_lands_in_its_place(noising_prompt, text):
    seen: list[str] = []

    def encode(texts):
        seen.extend(texts)
        return jnp.arange(len(texts), dtype=jnp.float32)[:, None, None] * jnp.ones((1, 2, 3))

    embeddings = prompts.embed_views(
        encode, "a red robot", negative_prompt="ugly", noising_prompt=noising_prompt
    )
    assert seen == [*prompts.view_prompts("a red robot"), "ugly", text]
    fields = (embeddings.front, embeddings.side, embeddings.back, embeddings.negative, embeddings.noising)
    assert [float(field[0, 0]) for field in fields] == [0, 1, 2, 3, 4]
    assert seen[0] == "The front view of a red robot"
