"""PIE-Bench's metrics compared with its own evaluation code (tests/golden/editing/metrics.npz)."""

from pathlib import Path

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.metrics.edits import (
    mask_from_runs,
    masked_mse,
    masked_psnr,
    masked_ssim,
    self_similarity,
    structure_distance,
)


@pytest.fixture(scope="module")
def stored():
    with np.load(Path(__file__).parents[1] / "golden" / "editing" / "metrics.npz") as file:
        return dict(file)


def test_the_mask(stored):
    np.testing.assert_array_equal(mask_from_runs(stored["mask_rle"], 64, 64), stored["mask"])
    for runs, says in (([5, 4000, 5], "pairs"), ([4096, 5], "in a picture of 64 by 64; give the mask")):
        with pytest.raises(UserError, match=says):
            mask_from_runs(runs, 64, 64)


@pytest.mark.parametrize("case", ["random", "edit", "same"])
def test_figures(stored, case):
    source, target = (stored[f"{case}.{name}"] / 255 for name in ("source", "target"))
    edited = stored["mask"].astype(bool)
    values = dict(zip(stored["metric_names"].tolist(), stored[f"{case}.values"].tolist(), strict=True))
    masks = {"": None, "_unedit_part": ~edited, "_edit_part": edited}
    for index, (part, mask) in enumerate(masks.items()):
        assert masked_psnr(source, target, mask) == pytest.approx(values[f"psnr{part}"], abs=1e-4)
        assert masked_mse(source, target, mask) == pytest.approx(values[f"mse{part}"], abs=1e-7)
        similarity = masked_ssim(source, target, mask)
        assert similarity == pytest.approx(values[f"ssim{part}"], abs=1e-3)
        assert similarity == pytest.approx(stored[f"{case}.ssim_float64"][index], abs=1e-6)


def test_structure(stored):
    source, target = stored["structure.keys"]
    np.testing.assert_allclose(self_similarity(source), stored["structure.self_similarity"][0, 0], atol=1e-5)
    assert structure_distance(source, target) == pytest.approx(float(stored["structure.distance"]), rel=1e-4)


def test_a_mask_of_another_size():
    picture = np.zeros((4, 6, 3))
    with pytest.raises(UserError, match="5 by 4 pixels and the picture 6 by 4"):
        masked_mse(picture, picture, np.zeros((4, 5), bool))
    with pytest.raises(UserError, match="give two of one size"):
        masked_ssim(picture, picture[:3])
