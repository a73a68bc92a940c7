"""Training data: shares of backgrounds and captions, correct views, painted pictures."""

from dataclasses import replace

import numpy as np
import pytest

from ge3d_jax.toybox.model import dataset
from ge3d_jax.toybox.model.dataset import (
    Views,
    paint_pictures,
    plan_pictures,
    view_angles,
    with_mirrored,
)
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.render import toybox_camera

COUNT = 4000


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(len(KINDS)), 5)
    layers = rng.integers(0, 256, size=(len(kinds), 4, 4, 6), dtype=np.uint8)
    azimuths = rng.uniform(-np.pi, np.pi, len(kinds)).astype(np.float32)
    polars = np.deg2rad(rng.uniform(30, 90, len(kinds))).astype(np.float32)
    return Views(layers, kinds, azimuths, polars)


@pytest.fixture(scope="module")
def plan(views):
    return plan_pictures(np.random.default_rng(1), views, COUNT)


def test_captions_tell_the_truth(views, plan):
    kinds, palette = list(KINDS), {name: np.asarray(rgb, np.float32) for name, rgb in COLORS.items()}
    np.testing.assert_allclose(plan.shares.sum(axis=1), 1, rtol=1e-6)
    for index, (text, other, above) in enumerate(plan.captions):
        if not text:
            assert not other and not above
            continue
        sentence = parse(text)
        view = plan.views[index]
        assert sentence.kind == kinds[views.kinds[view]]
        np.testing.assert_array_equal(plan.primary[index], palette[sentence.color])
        second = sentence.second_color or KINDS[sentence.kind].part_color
        np.testing.assert_array_equal(plan.secondary[index], palette[second])
        assert parse(other) == replace(sentence, view=parse(other).view)
        if sentence.view is None:
            assert other == above == text
            continue
        assert parse(above) == replace(sentence, view="overhead")
        # The angle from the front represented by the mixture of the two views.
        angles = {"front": 0.0, "side": 90.0, "back": 180.0}
        nearer, farther, overhead = plan.shares[index]
        told = (nearer * angles[sentence.view] + farther * angles[parse(other).view]) / (nearer + farther)
        assert abs(told - abs(np.rad2deg(views.azimuths[view]))) < 1e-3
        # The overhead view has a share of one half at 30° from the vertical, and none at the horizon.
        assert abs(90 - 120 * overhead - np.rad2deg(views.polars[view])) < 1e-3


def test_shares_are_those_of_the_recipe(views, plan):
    sentences = [parse(text) for text, _, _ in plan.captions if text]
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
    # Views are equally frequent.
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


def test_mirrored_views_are_as_high_on_the_other_side(views):
    both = with_mirrored(views)
    count = len(views.kinds)
    np.testing.assert_array_equal(both.layers[count:], views.layers[:, :, ::-1])
    np.testing.assert_array_equal(both.azimuths[count:], -views.azimuths)
    np.testing.assert_array_equal(both.polars, np.tile(views.polars, 2))
    np.testing.assert_array_equal(both.kinds, np.tile(views.kinds, 2))


def test_angles_are_where_the_camera_stands():
    camera = toybox_camera(2.0, 0.7, 3.5, size=16)
    np.testing.assert_allclose(view_angles(camera), (2.0, 0.7), rtol=1e-5)
