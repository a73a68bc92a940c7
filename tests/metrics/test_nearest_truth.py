"""The nearest ground truth: its camera is found off the gallery's grid, at the world's camera distance."""

import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.metrics.nearest_truth import nearest_truth
from ge3d_jax.metrics.pictures import psnr
from ge3d_jax.metrics.recognition import build_gallery, recognize
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.render import RADIUS, paint_layers, sentence_colors, toybox_camera, trace

BEHIND = np.asarray((0.2, 0.5, 0.9), np.float32)
SENTENCE = Sentence("duck", "red")


@pytest.fixture(scope="module")
def gallery():
    return build_gallery(["duck"], azimuths=24, polar_degrees=(70.0,))


def seen(azimuth, polar, size, radius=RADIUS):
    layers = trace(SENTENCE.kind, toybox_camera(np.deg2rad(azimuth), np.deg2rad(polar), radius, size=size))
    return paint_layers(layers, *sentence_colors(SENTENCE), jnp.asarray(BEHIND)), layers.alpha


# A view of the gallery, one between its azimuths, and one beyond all of its cameras.
@pytest.mark.parametrize(
    ("place", "size", "least"), [((15, 70), 64, 80), ((23, 65), 64, 34), ((-96, 84), 128, 28)]
)
def test_the_camera_of_a_picture_is_found(gallery, place, size, least):
    picture, outline = seen(*place, size)
    images = np.asarray(picture)[None]
    named = recognize(gallery, images, BEHIND)
    pictures, outlines = nearest_truth(gallery, named, images, BEHIND)
    assert pictures.shape == images.shape and outlines.shape == images.shape[:-1]
    assert float(psnr(pictures[0], images[0])) > least
    assert np.mean(np.abs(outlines[0] - outline)) < 0.01


def test_a_camera_outside_the_world_is_not_taken(gallery):
    far, outline = seen(0, 70, 64, radius=4.5)
    images = np.asarray(far)[None]
    found, outlines = nearest_truth(gallery, recognize(gallery, images, BEHIND), images, BEHIND)
    # At the distance of the world's cameras, and no farther.
    area = np.sum(outlines) / np.sum(seen(0, 70, 64)[1])
    assert 0.9 < area < 1.1 and np.sum(outlines) > 1.3 * np.sum(outline)
    assert float(psnr(found[0], images[0])) < 25
