"""The sphere that contains splats; tests/runs/test_show.py renders splats in it."""

import numpy as np
import pytest

from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.viewer.framing import find_frame
from tests.formats.splat_files import random_gaussians, with_values

# Of every splat: three times as much is its reach.
SCALE = 0.1


def on_a_sphere(radius: float = 2.0, count: int = 200) -> Gaussians:
    """Opaque splats of equal size at the same distance from (1, 2, 3)."""
    gaussians = random_gaussians(count, degree=0)
    directions = gaussians.positions / np.linalg.norm(gaussians.positions, axis=1, keepdims=True)
    return gaussians.replace(
        positions=(radius * directions + [1, 2, 3]).astype(np.float32),
        log_scales=np.full((count, 3), np.log(SCALE), np.float32),
        opacity_logits=np.full(count, 2.0, np.float32),
    )


def test_the_sphere_reaches_three_standard_deviations_beyond_the_centers() -> None:
    frame = find_frame(on_a_sphere())
    np.testing.assert_allclose(frame.center, [1, 2, 3], atol=0.05)
    assert frame.radius == pytest.approx(2.0 + 3 * SCALE, abs=0.05)


def test_unused_splats_do_not_count_and_faint_ones_only_if_there_are_no_others() -> None:
    wanted = find_frame(on_a_sphere())
    for changes in ({"mask": False}, {"opacity_logits": -9.0}):
        gaussians = with_values(on_a_sphere(), "positions", np.s_[:90], 1e3)
        for name, value in changes.items():
            gaussians = with_values(gaussians, name, np.s_[:90], value)
        frame = find_frame(gaussians)
        np.testing.assert_allclose(frame.center, wanted.center, atol=0.2)
        assert frame.radius == pytest.approx(wanted.radius, abs=0.2)
    faint = find_frame(with_values(on_a_sphere(), "opacity_logits", slice(None), -9.0))
    assert faint.radius == wanted.radius and (faint.center == wanted.center).all()


def test_a_few_giant_splats_do_not_make_the_rest_tiny() -> None:
    giants = with_values(on_a_sphere(), "log_scales", np.s_[:20], np.log(1e4))
    assert find_frame(giants).radius == pytest.approx(2.0 + 10 * 3 * SCALE, abs=0.1)
