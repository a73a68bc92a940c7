"""Training data: shares of backgrounds and captions, correct views, painted pictures."""

from dataclasses import replace

import numpy as np
import pytest

from ge3d_jax.toybox.model import dataset
from ge3d_jax.toybox.model.dataset import Views, paint_pictures, plan_pictures
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.objects import COLORS, KINDS

COUNT = 4000


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(len(KINDS)), 5)
    layers = rng.integers(0, 256, size=(len(kinds), 4, 4, 6), dtype=np.uint8)
    return Views(layers, kinds, rng.uniform(-np.pi, np.pi, len(kinds)).astype(np.float32))


@pytest.fixture(scope="module")
def plan(views):
    return plan_pictures(np.random.default_rng(1), views, COUNT)


def test_captions_tell_the_truth(views, plan):
    kinds, palette = list(KINDS), {name: np.asarray(rgb, np.float32) for name, rgb in COLORS.items()}
    for index, (text, other) in enumerate(plan.captions):
        if not text:
            assert not other
            continue
        sentence = parse(text)
        view = plan.views[index]
        assert sentence.kind == kinds[views.kinds[view]]
        np.testing.assert_array_equal(plan.primary[index], palette[sentence.color])
        second = sentence.second_color or KINDS[sentence.kind].part_color
        np.testing.assert_array_equal(plan.secondary[index], palette[second])
        assert parse(other) == replace(sentence, view=parse(other).view)
        if sentence.view is None:
            assert other == text
            continue
        # The angle from the front that the mixture of the two views represents.
        angles = {"front": 0.0, "side": 90.0, "back": 180.0}
        share = plan.shares[index]
        told = share * angles[sentence.view] + (1 - share) * angles[parse(other).view]
        assert abs(told - abs(np.rad2deg(views.azimuths[view]))) < 1e-3


def test_shares_are_those_of_the_recipe(views, plan):
    sentences = [parse(text) for text, _ in plan.captions if text]
    white = (plan.background == 1).all(axis=1)
    black = (plan.background == 0).all(axis=1)
    shares = {
        1 - len(sentences) / COUNT: dataset.EMPTY_SHARE,
        np.mean([sentence.view is not None for sentence in sentences]): dataset.VIEW_PHRASE_SHARE,
        np.mean([sentence.second_color is not None for sentence in sentences]): dataset.SECOND_COLOR_SHARE,
        white.mean(): dataset.WHITE_SHARE,
        black.mean(): dataset.BLACK_SHARE,
    }
    for found, wanted in shares.items():
        assert abs(found - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / COUNT)
    assert 0.10 <= dataset.EMPTY_SHARE <= 0.15
    # Every view is equally frequent.
    used = np.bincount(plan.views, minlength=len(views.kinds))
    assert used.max() - used.min() <= 1
    others = plan.background[~white & ~black]
    assert np.all(np.abs(others.mean(axis=0) - 0.5) < 0.05)


def test_a_plan_is_reproducible(views, plan):
    again = plan_pictures(np.random.default_rng(1), views, COUNT)
    assert again.captions == plan.captions
    np.testing.assert_array_equal(again.background, plan.background)


def test_pictures_are_the_layers_in_the_paint_of_the_plan(views, plan):
    rows = np.asarray([3, 0, 17])
    pictures = np.asarray(paint_pictures(views, plan, rows))
    for picture, row in zip(pictures, rows, strict=True):
        layers = views.layers[plan.views[row]] / 255.0
        expected = (
            layers[..., :1] * plan.primary[row]
            + layers[..., 1:2] * plan.secondary[row]
            + layers[..., 2:5]
            + (1 - layers[..., 5:]) * plan.background[row]
        )
        np.testing.assert_allclose(picture, expected, atol=1e-5)
