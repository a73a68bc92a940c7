"""The denoiser: the algebra of guidance, and batching of texts and views."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.diffusion.denoiser import (
    Branches,
    Denoiser,
    ViewTexts,
    classifier_free_epsilon,
)
from ge3d_jax.diffusion.networks.adapters import Adapter
from ge3d_jax.diffusion.schedule import noise_schedule_from_config

SCHEDULE = noise_schedule_from_config({})


def combined(empty, positive, negatives, weights, scale):
    return Branches(empty, positive, negatives, weights, ()).guided(scale)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0, 20))
def test_perp_neg_at_weight_zero_is_plain_guidance(seed, scale):
    empty, positive, first, second = jax.random.normal(jax.random.key(seed), (4, 3, 4, 4, 2))
    negatives = jnp.stack([first, second], axis=1)
    guided = combined(empty, positive, negatives, jnp.zeros((3, 2)), scale)
    np.testing.assert_allclose(guided, classifier_free_epsilon(empty, positive, scale), rtol=1e-6, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_what_perp_neg_adds_is_perpendicular_to_the_text(seed):
    empty, positive, first, second = jax.random.normal(jax.random.key(seed), (4, 3, 4, 4, 2))
    negatives = jnp.stack([first, second], axis=1)
    weights = jnp.array([[-2.0, -1.0], [0.0, -2.0], [-0.3, 0.0]])
    guided = combined(empty, positive, negatives, weights, 7.5)
    added = guided - classifier_free_epsilon(empty, positive, 7.5)
    along = jnp.sum(added * (positive - empty), axis=(1, 2, 3))
    np.testing.assert_allclose(along, 0.0, atol=1e-3)
    assert float(jnp.min(jnp.sum(added**2, axis=(1, 2, 3)))) > 1.0


def test_a_negative_along_the_text_adds_nothing_and_samples_stay_apart():
    empty, positive = jax.random.normal(jax.random.key(0), (2, 2, 3, 3, 1))
    along = empty + 0.5 * (positive - empty)
    guided = combined(empty, positive, jnp.stack([along, along], axis=1), jnp.full((2, 2), -2.0), 7.5)
    np.testing.assert_allclose(guided, classifier_free_epsilon(empty, positive, 7.5), atol=1e-4)


def test_a_text_that_changes_nothing_stays_finite():
    empty = jnp.ones((1, 2, 2, 1))
    guided = combined(empty, empty, jnp.ones((1, 2, 2, 2, 1)) * 3, jnp.full((1, 2), -2.0), 7.5)
    assert bool(jnp.all(jnp.isfinite(guided)))


def test_guidance_counted_from_the_text_is_one_more_without_perp_neg():
    empty, positive, first, second = jax.random.normal(jax.random.key(0), (4, 3, 4, 4, 2))
    negatives, weights = jnp.stack([first, second], axis=1), jnp.full((3, 2), -0.7)
    plain = Branches(empty, positive, negatives[:, :0], weights[:, :0], ())
    np.testing.assert_allclose(
        plain.guided_from_text(5.0), positive + 5.0 * (positive - empty), rtol=1e-4, atol=1e-4
    )
    with_views = Branches(empty, positive, negatives, weights, ())
    np.testing.assert_array_equal(with_views.guided_from_text(5.0), with_views.guided(5.0))
    assert with_views.has_perp_neg and not plain.has_perp_neg


VIEWS = 4


def telling(model, x, t, text, adapter=None):
    """A prediction that encodes its x, time, text and adapter."""
    offset = 0.0 if adapter is None else adapter.lora + adapter.time_offset[:, :1]
    times = jnp.broadcast_to(t, x.shape[:1])[:, None]
    of_each = 10 * times + 1000 * text[:, 0] + offset
    return x + model * of_each[:, None, None, :]


def denoiser(at_a_time=VIEWS):
    return Denoiser(jnp.float32(2.0), SCHEDULE, at_a_time, telling)


@pytest.fixture
def texts():
    values = jax.random.normal(jax.random.key(1), (VIEWS + 2 * VIEWS + 3, 1, 1))
    return ViewTexts(
        positive=values[:VIEWS],
        avoided=values[VIEWS : 3 * VIEWS].reshape(VIEWS, 2, 1, 1),
        weights=-jnp.arange(2.0 * VIEWS).reshape(VIEWS, 2),
        negative=values[-3],
        empty=values[-2],
        plain=values[-1],
    )


@pytest.mark.parametrize("times", [jnp.int32(7), jnp.arange(VIEWS) + 3])
def test_every_branch_is_asked_for_its_own_text_and_time(texts, times):
    x = jax.random.normal(jax.random.key(2), (VIEWS, 2, 2, 1))
    branches = denoiser().branches(x, times, texts, texts.negative, texts.empty, texts.positive)

    def expected(text):
        return telling(jnp.float32(2.0), x, times, jnp.broadcast_to(text, (VIEWS, 1, 1)))

    np.testing.assert_array_equal(branches.unconditional, expected(texts.negative))
    np.testing.assert_array_equal(branches.positive, expected(texts.positive))
    for j in (0, 1):
        np.testing.assert_array_equal(branches.avoided[:, j], expected(texts.avoided[:, j]))
    np.testing.assert_array_equal(branches.others[0], expected(texts.empty))
    np.testing.assert_array_equal(branches.others[1], expected(texts.positive))
    np.testing.assert_array_equal(branches.weights, texts.weights)


@pytest.mark.parametrize("times", [jnp.int32(7), jnp.arange(VIEWS) + 3])
@pytest.mark.parametrize("at_a_time", [1, 2])
def test_views_in_turn_are_answered_as_all_at_once(texts, times, at_a_time):
    x = jax.random.normal(jax.random.key(2), (VIEWS, 2, 2, 1))
    adapter = Adapter(lora=jnp.float32(0.5), time_offset=jnp.arange(2.0 * VIEWS).reshape(VIEWS, 2))
    for asked in ({}, {"adapter": adapter}):
        wanted, got = (
            one.predict_for(x, times, texts.positive, texts.empty, **asked)
            for one in (denoiser(), denoiser(at_a_time))
        )
        chex.assert_trees_all_equal(got, wanted)
    plain = denoiser().predict_for(x, times, texts.positive)[0]
    changed = denoiser().predict_for(x, times, texts.positive, adapter=adapter)[0]
    expected = 2.0 * (0.5 + adapter.time_offset[:, 0])
    np.testing.assert_allclose((changed - plain)[:, 0, 0, 0], expected, atol=1e-2)


def test_the_network_is_asked_at_most_for_so_many_views(texts):
    batches = []

    def recording(model, x, t, text):
        batches.append(x.shape[0])
        return x

    x = jnp.zeros((VIEWS, 2, 2, 1))
    in_turn = dataclasses.replace(denoiser(2), predict=recording)
    jax.eval_shape(lambda x: in_turn.branches(x, 5, texts, texts.empty).guided(2.0), x)
    assert batches == [2 * 4]
