"""A missing package gives a one-sentence error."""

import json

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.extras import load_package


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
