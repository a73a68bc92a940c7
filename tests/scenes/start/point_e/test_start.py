"""The start's settings that place a cloud in the world."""

import dataclasses

import jax
import numpy as np

from ge3d_jax.scenes.start.point_e.start import PointEStart
from tests.scenes.start.point_e import small


def test_the_start_s_own_prompt_comes_before_the_run_s():
    start = PointEStart(model="folder", prompt="a mushroom")
    assert start.words_of("a red mushroom, 8K")[0] == "a mushroom"
    assert dataclasses.replace(start, prompt=None).words_of("a red mushroom, 8K")[0] == "a red mushroom, 8K"


def test_a_cloud_is_scaled_and_then_lifted(tmp_path):
    plain = PointEStart(model=str(small.save(tmp_path / "model")), prompt="a red mushroom", lift=0.0)
    placed = dataclasses.replace(plain, size=2.5, lift=0.2)
    expected = 2.5 * plain.cloud(jax.random.key(0)).positions + np.array([0.0, 0.0, 0.2])
    np.testing.assert_allclose(placed.cloud(jax.random.key(0)).positions, expected, rtol=1e-5, atol=1e-5)
