"""Where a mesh is placed, by the settings of its start."""

import dataclasses

import jax
import numpy as np
import pytest
import trimesh

from ge3d_jax.scenes.start.files import MeshFile


@pytest.fixture
def start(tmp_path):
    """A start with a box that is far from the origin and largest along the file's y axis."""
    mesh = trimesh.creation.box(extents=(1.0, 6.0, 2.0))
    mesh.apply_translation((5.0, 0.0, 0.0))
    mesh.export(tmp_path / "mesh.ply")
    return MeshFile(file=str(tmp_path / "mesh.ply"), points=500, scale=0.1, radius=0.5)


def positions(start):
    return np.asarray(start.gaussians(jax.random.key(0)).positions)


def test_a_mesh_is_moved_and_scaled_into_a_ball(start):
    fitted = positions(start)
    assert np.linalg.norm(fitted, axis=1).max() == pytest.approx(0.5, rel=1e-5)
    assert np.abs(fitted.max(axis=0) + fitted.min(axis=0)).max() < 1e-5
    with pytest.warns(UserWarning, match="from the origin"):
        assert positions(dataclasses.replace(start, radius=None))[:, 0].min() > 4


@pytest.mark.parametrize(("y_up", "longest"), [(True, 2), (False, 1), (None, 1)])
def test_y_is_up_in_a_mesh_that_is_said_to_be_so(start, y_up, longest):
    extents = np.ptp(positions(dataclasses.replace(start, y_up=y_up)), axis=0)
    assert extents.argmax() == longest
