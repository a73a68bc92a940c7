"""Recognition of pictures: ground truth on and off the grid, any background, and brute-force errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.metrics import recognition as recognizer
from ge3d_jax.metrics.recognition import (
    build_gallery,
    confusion_matrix,
    estimate_background,
    load_gallery,
    make_gallery,
    recognize,
    recognized_front,
    trace_views,
)
from ge3d_jax.runs import evaluate as evaluation
from ge3d_jax.toybox.model.dataset import layer_bytes
from ge3d_jax.toybox.world.captions import Sentence, parse
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.render import Layers, paint_layers, render_sentence, toybox_camera, trace

KIND_NAMES = ("duck", "mushroom")
COLOR_NAMES = tuple(COLORS)
POLAR = np.deg2rad(70.0)
WHITE = np.ones(3, np.float32)
ODD = np.asarray((0.2, 0.5, 0.9), np.float32)


@pytest.fixture(scope="module")
def gallery():
    return build_gallery(KIND_NAMES, azimuths=8, polar_degrees=(45.0, 70.0))


def truth(kind, color, azimuth, *, polar=POLAR, radius=3.5, background=WHITE, size=64):
    camera = toybox_camera(azimuth, polar, radius, size=size)
    return np.asarray(render_sentence(Sentence(kind, color), camera, background=jnp.asarray(background)))


def paint_gallery(gallery, background):
    """All pictures of the gallery, painted one by one: (K, V, C, H, W, 3)."""
    planes = jnp.asarray(gallery.layers, jnp.float32) / 255.0
    return np.stack(
        [
            np.stack(
                [
                    paint_layers(
                        Layers(layers[..., 0], layers[..., 1], layers[..., 2:5], layers[..., 5]),
                        jnp.asarray(rgb),
                        jnp.asarray(COLORS[KINDS[kind].part_color]),
                        jnp.asarray(background),
                    )
                    for rgb in COLORS.values()
                ],
                axis=1,
            )
            for kind, layers in zip(gallery.kinds, planes, strict=True)
        ]
    )


def test_names_ground_truth_on_the_grid(gallery):
    # The gallery stores the view at -45° as the mirror image of another one.
    asked = [("duck", "yellow", 0.0), ("mushroom", "red", 0.0), ("duck", "white", -np.pi / 4)]
    named = recognize(gallery, np.stack([truth(*one) for one in asked]), WHITE)
    assert [gallery.kinds[kind] for kind in named.kinds] == [kind for kind, _, _ in asked]
    assert [COLOR_NAMES[color] for color in named.colors] == [color for _, color, _ in asked]
    np.testing.assert_allclose(named.azimuths[[0, 2]], [0.0, -np.pi / 4], atol=1e-6)
    assert named.errors.max() < 1e-4


def test_names_every_picture_of_the_gallery(gallery):
    pictures = paint_gallery(gallery, WHITE)
    kinds, views, colors = np.indices(pictures.shape[:3]).reshape(3, -1)
    named = recognize(gallery, pictures.reshape(-1, *pictures.shape[3:]), WHITE)
    np.testing.assert_array_equal(named.kinds, kinds)
    np.testing.assert_array_equal(named.colors, colors)
    ducks = kinds == 0
    np.testing.assert_allclose(named.azimuths[ducks], gallery.azimuths[views[ducks]])


def test_names_ground_truth_off_the_grid(gallery):
    picture = truth("duck", "purple", np.deg2rad(10.0), polar=np.deg2rad(67.0), radius=3.4)
    named = recognize(gallery, picture[None], WHITE)
    assert (gallery.kinds[named.kinds[0]], COLOR_NAMES[named.colors[0]]) == ("duck", "purple")
    assert named.azimuths[0] == 0.0 and recognized_front(named.azimuths[0])


def test_error_is_that_of_painting_every_candidate(gallery):
    rng = np.random.default_rng(0)
    images = rng.random((2, 64, 64, 3)).astype(np.float32)
    behind = np.stack([ODD, WHITE])
    named = recognize(gallery, images, behind)
    for index in range(2):
        errors = np.mean((paint_gallery(gallery, behind[index]) - images[index]) ** 2, axis=(3, 4, 5))
        kind, view, color = np.unravel_index(errors.argmin(), errors.shape)
        assert (named.kinds[index], named.colors[index]) == (kind, color)
        assert named.azimuths[index] == gallery.azimuths[view]
        np.testing.assert_allclose(named.errors[index], errors.min(), rtol=1e-4)


def test_background_is_found_and_used(gallery):
    pictures = np.stack(
        [truth("mushroom", "white", 0.0, background=ODD), truth("mushroom", "white", 0.0, background=WHITE)]
    )
    found = estimate_background(pictures)
    np.testing.assert_allclose(found, [ODD, WHITE], atol=1e-6)
    noisy = pictures + np.random.default_rng(0).normal(scale=0.02, size=pictures.shape)
    noisy[:, :, :5] = 0.0  # an object that reaches the edge
    np.testing.assert_allclose(estimate_background(noisy), [ODD, WHITE], atol=0.03)
    named = recognize(gallery, pictures, found)
    assert [COLOR_NAMES[color] for color in named.colors] == ["white", "white"]
    assert named.errors.max() < 1e-4
    assert recognize(gallery, pictures[:1], WHITE).errors[0] > 0.01


def test_the_gallery_of_the_package_shows_the_world_as_it_is():
    """If this fails after a change to the world, run experiments/trace_gallery.py."""
    shipped = load_gallery()
    assert shipped.kinds == tuple(KINDS) and shipped.layers.shape == (len(KINDS), 96, 64, 64, 6)
    for number, kind in enumerate(KINDS):
        # Another view of each kind, from either side.
        view = (number * 7 + 3) % 96
        camera = toybox_camera(shipped.azimuths[view], shipped.polars[view], size=64)
        layers = layer_bytes(trace(kind, camera)).astype(int)
        difference = np.abs(layers - shipped.layers[number, view])
        # Machines round differently, which moves the finest grain of textures (0.2 of 255 levels on average).
        assert difference.mean() < 0.5, kind


def test_a_written_gallery_is_the_gallery(gallery):
    views = trace_views(KIND_NAMES, 8, (45.0, 70.0))
    assert views.shape == (2, 2, 5, 64, 64, 6)
    np.testing.assert_array_equal(views[1, 1, 3], gallery.layers[1, 8 + 3])
    # The right half mirrors the left one.
    np.testing.assert_array_equal(gallery.layers[0, 5], gallery.layers[0, 3][:, ::-1])
    np.testing.assert_allclose(gallery.azimuths[5], -gallery.azimuths[3], atol=1e-6)
    odd = make_gallery(KIND_NAMES, views[:, :, :3], 5, (45.0, 70.0))
    assert odd.layers.shape[1] == 10 and len(odd.azimuths) == 10
    np.testing.assert_array_equal(odd.layers[0, 3], views[0, 0, 2][:, ::-1])
    np.testing.assert_array_equal(odd.layers[0, 4], views[0, 0, 1][:, ::-1])


def test_larger_pictures_are_averaged_down(gallery):
    picture = truth("duck", "red", np.pi / 4, background=ODD, size=128)
    means = picture.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(recognizer.shrink(picture, 64), means, atol=1e-6)
    large, small = (recognize(gallery, image[None], ODD) for image in (picture, means))
    assert (gallery.kinds[large.kinds[0]], COLOR_NAMES[large.colors[0]]) == ("duck", "red")
    np.testing.assert_allclose(large.azimuths, np.pi / 4, atol=1e-6)
    # Errors are differences of large sums.
    np.testing.assert_allclose(large.errors, small.errors, rtol=1e-3)


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (1, 96, 96, 3), (1, 128, 64, 3), (1, 64, 64, 4), (64, 3)])
def test_pictures_that_do_not_average_down_are_refused(gallery, shape):
    with pytest.raises(ValueError, match="multiple of 64"):
        recognize(gallery, np.zeros(shape), WHITE)


def test_fronts_and_confusion():
    degrees = np.asarray([0, 45, -45, 60, 90, 180, -180, 315, 360])
    np.testing.assert_array_equal(
        recognized_front(np.deg2rad(degrees).astype(np.float32)),
        [True, True, True, False, False, False, False, True, True],
    )
    matrix = confusion_matrix(np.asarray([0, 0, 2, 2]), np.asarray([0, 1, 2, 2]), 3)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 0, 0], [0, 0, 2]])


def test_figures_of_the_recognizer(gallery):
    figures = evaluation.measure_recognizer(gallery, repeats=1)
    assert figures["pictures"] == 24
    assert figures["right_kind_and_color"] > 0.9
    assert np.sum(figures["kind_confusion"]) == np.sum(figures["color_confusion"]) == 24
    off = figures["azimuth_error_degrees"]
    assert off["median"] < 25  # this gallery's grid has a spacing of 45°
    assert off["median"] < off["percentile_95"] <= off["largest"]
    # Only ducks have a front.
    assert 10 <= off["pictures"] <= 12


def test_figures_of_a_model_that_draws_the_truth_except_for_one_kind(gallery):
    def sample(prompts, key):
        wrong = {"mushroom": "duck"}
        asked = [parse(prompt) for prompt in prompts]
        azimuth = float(jax.random.randint(key, (), 0, 8)) * np.pi / 4
        return np.stack(
            [truth(wrong.get(one.kind, one.kind), one.color, azimuth, background=ODD) for one in asked]
        )

    figures, pictures = evaluation.measure_model(gallery, sample)
    assert pictures.shape == (24, 64, 64, 3)
    assert (figures["right_kind"], figures["right_color"]) == (0.5, 1.0)
    assert figures["right_kind_and_color"] == 0.5
    # The ground truth itself, with its camera found by search.
    assert figures["likeness"]["psnr"] > 45 and abs(figures["likeness"]["sharpness"] - 1) < 0.01
    assert all(sample.pop("likeness")["psnr"] > 45 for sample in figures["samples"])
    assert figures["samples"][12] | {"squared_error": 0} == {
        "prompt": "a red mushroom",
        "named_kind": "duck",
        "named_color": "red",
        "right_kind": False,
        "right_color": True,
        "squared_error": 0,
    }


@pytest.fixture(scope="module")
def around():
    return {
        kind: np.stack([truth(kind, "green", azimuth) for azimuth in np.arange(8) * np.pi / 4])
        for kind in KIND_NAMES
    }


def test_figures_of_objects(gallery, around):
    duck = evaluation.measure_object(gallery, "a green duck", around["duck"])
    assert duck["right_kind_and_color"] == 1.0 and duck["one_front"] and duck["fronts_at_degrees"] == [0]
    assert [view["named_azimuth_degrees"] % 360 for view in duck["views"]] == list(range(0, 360, 45))

    two_faced = around["duck"].copy()
    two_faced[4] = two_faced[0]
    janus = evaluation.measure_object(gallery, "a green duck", two_faced)
    assert janus["one_front"] is False and janus["fronts_at_degrees"] == [0, 180]
    turned = evaluation.measure_object(gallery, "a green duck", np.roll(around["duck"], 2, axis=0))
    assert turned["one_front"] is False and turned["fronts_at_degrees"] == [90]

    plain = evaluation.measure_object(gallery, "a red mushroom", around["mushroom"])
    assert plain["one_front"] is None
    assert (plain["right_kind"], plain["right_color"]) == (1.0, 0.0)

    means = evaluation.summarize_objects([one | {"seconds": 2.0} for one in (duck, janus, plain)])
    assert (means["objects"], means["objects_with_front"], means["one_front"]) == (3, 2, 0.5)
    assert means["mean_seconds"] == 2.0 and means["multi_faced"] == 0.5
