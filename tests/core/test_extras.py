"""A missing package gives a one-sentence error."""

import json
import sys
from pathlib import Path

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.extras import load_package, package_folder


def test_a_package_that_is_there_is_loaded():
    assert load_package("json", wanted_by="--x") is json
    assert load_package("json.decoder", wanted_by="--x") is json.decoder


@pytest.mark.parametrize(
    ("options", "install"), [({}, "no_such_package"), ({"install": "no-such[x]"}, "no-such[x]")]
)
def test_one_that_is_missing_is_named_with_what_installs_it(options, install):
    with pytest.raises(UserError) as raised:
        load_package("no_such_package.part", wanted_by="--x", **options)
    assert str(raised.value) == f"--x needs the package no_such_package; run pip install {install}."


def test_the_folder_of_a_package_is_found_without_importing_it():
    assert "pydoc_data" not in sys.modules
    folder = package_folder("pydoc_data", how_to_get="get it")
    assert folder == Path(json.__file__).parents[1] / "pydoc_data" and "pydoc_data" not in sys.modules


@pytest.mark.parametrize("name", ["no_such_package", "keyword"])
def test_what_is_no_package_with_a_folder_says_how_to_get_it(name):
    # A module in a single file has no folder of data either.
    with pytest.raises(UserError, match="^get it$"):
        package_folder(name, how_to_get="get it")
