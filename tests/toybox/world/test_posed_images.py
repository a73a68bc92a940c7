"""The cameras of a written scene; tests/formats/test_posed_images.py reads its pictures back."""

import numpy as np

from ge3d_jax.formats.posed_images import read_posed_images
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.posed_images import POLAR_RANGE, SMALLEST_SIZE, write_posed_images


def test_the_test_images_are_from_cameras_of_their_own(tmp_path):
    write_posed_images(tmp_path, Sentence("duck", "blue"), views=4, test_views=4, size=SMALLEST_SIZE, seed=0)
    train, test = read_posed_images(tmp_path)
    centers = np.concatenate([train.centers, test.centers])
    apart = np.linalg.norm(centers[:, None] - centers, axis=-1) + np.eye(8)
    assert apart.min() > 0.01
    polars = np.arccos(centers[:, 2] / np.linalg.norm(centers, axis=1))
    assert (polars > POLAR_RANGE[0] - 1e-4).all() and (polars < POLAR_RANGE[1] + 1e-4).all()
