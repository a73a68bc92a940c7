"""The small Point-E that ships: what its clouds show, where they face, and how large its files are."""

import jax
import numpy as np
import pytest

from ge3d_jax.scenes.start.point_e.files import bundled_folder
from ge3d_jax.scenes.start.point_e.start import PointEStart
from ge3d_jax.toybox.world.objects import COLORS
from ge3d_jax.training.presets import configured


@pytest.fixture(scope="module")
def start():
    start = configured("toybox", start="point_e").scene.start
    assert isinstance(start, PointEStart)
    return start


@pytest.fixture(scope="module")
def duck(start):
    return start.asked_for("a blue duck").cloud(jax.random.key(0))


def nearest_colors(cloud):
    names = list(COLORS)
    distances = np.linalg.norm(cloud.colors[:, None] - np.asarray([COLORS[name] for name in names]), axis=-1)
    return np.asarray(names)[distances.argmin(axis=1)]


def test_a_blue_duck_is_blue_and_its_beak_points_to_x(duck):
    assert duck.positions.shape == (1024, 3)
    colors = nearest_colors(duck)
    assert (colors == "blue").mean() > 0.6
    beak = duck.positions[colors == "orange"]
    assert len(beak) > 20
    # The beak's tip is at x = 0.73, and it is narrow.
    assert beak[:, 0].mean() > 0.35 and np.abs(beak[:, 1].mean()) < 0.1


def test_its_splats_fit_the_preset(start):
    splats = start.asked_for("a blue duck").gaussians(jax.random.key(0))
    assert int(splats.mask.sum()) == 5 * 1024 <= configured("toybox", start="point_e").scene.capacity
    assert np.abs(np.asarray(splats.positions)).max() < 1.2


def test_its_files_are_small():
    assert sum(file.stat().st_size for file in bundled_folder().rglob("*") if file.is_file()) < 3_000_000
