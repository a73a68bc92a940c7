"""CLIP's towers compared with transformers."""

import numpy as np
import pytest

from ge3d_jax.diffusion.weights.clip import load_text_tower, load_vision_tower
from tests import tiny_clip
from tests.write_clip_golden import features


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_towers_give_transformers_features(tmp_path, activation):
    folder = tiny_clip.save(tmp_path, activation)
    expected = features(folder)
    text = load_text_tower(folder).features(tiny_clip.TEXTS)
    pictures = load_vision_tower(folder).features(tiny_clip.pictures())
    for value, name in ((text, "text"), (pictures, "pictures")):
        assert np.abs(expected[name]).max() > 0.5
        np.testing.assert_allclose(value, expected[name], atol=1e-4)
