"""What the tests of figures share: the tiny model, as a folder."""

import pytest

from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="package")
def tiny_place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    return folder
