"""Shared fixtures of the run tests: a tiny model, and turntables with few frames."""

from collections.abc import Iterator

import pytest

from ge3d_jax.mesh.build import MeshSettings
from ge3d_jax.runs import results
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="package", autouse=True)
def _short_turntables() -> Iterator[None]:
    """Shorten turntables, because rendering 64 frames would take longer than the rest of these runs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(results, "_TURNTABLE_FRAMES", 16)
        patched.setattr(results, "_SHEET_STRIDE", 2)
        patched.setattr(results, "_MESH", MeshSettings(8, 48, 16, 500, 64))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model's folder."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    return folder
