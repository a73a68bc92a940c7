"""What the tests of runs share: a tiny model, and short turntables: the sheet's views and as many between."""

from collections.abc import Iterator

import pytest

from ge3d_jax.mesh.build import MeshSettings
from ge3d_jax.runs import results
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="package", autouse=True)
def _short_turntables() -> Iterator[None]:
    """To draw 64 frames takes longer than all else in the runs of these tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(results, "_TURNTABLE_FRAMES", 16)
        patched.setattr(results, "_SHEET_STRIDE", 2)
        patched.setattr(results, "_MESH", MeshSettings(8, 48, 16, 500, 64))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of the tiny model."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    return folder
