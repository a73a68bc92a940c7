"""Shared fixtures of the figure tests: the tiny model's folder, and a gallery of one kind."""

import pytest

from ge3d_jax.metrics.recognition import build_gallery
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="package")
def tiny_place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="package")
def tiny_gallery():
    """Mushrooms from a few sides."""
    return build_gallery(["mushroom"], azimuths=4, polar_degrees=(70.0,))
