"""Pickles as data: what comes back, and what is refused."""

import collections
import pickle

import numpy as np
import pytest

from ge3d_jax.core.plain_pickle import load_plain_pickle

CONTENT = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "rest": [1, 2.5, "three", None, True, (4,), {5: b"six"}],
}


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_arrays_and_plain_values_come_back(tmp_path, protocol, module):
    data = pickle.dumps(CONTENT, protocol=protocol)
    if protocol == 3:
        # NumPy 1 wrote the other name; protocol 4 also stores its length.
        data = data.replace(b"cnumpy._core.multiarray\n", b"c" + module + b"\n")
    (tmp_path / "file").write_bytes(data)
    found = load_plain_pickle(tmp_path / "file")
    for name in ("weights", "turned"):
        assert found[name].dtype == CONTENT[name].dtype
        np.testing.assert_array_equal(found[name], CONTENT[name])
    assert found["rest"] == CONTENT["rest"]


@pytest.mark.parametrize(
    "value", [collections.Counter("ab"), np.float32, pytest.raises, np.random.default_rng(0)]
)
def test_anything_else_is_refused_by_name(tmp_path, value):
    (tmp_path / "file").write_bytes(pickle.dumps({"a": value}))
    with pytest.raises(pickle.UnpicklingError, match="it asks for '"):
        load_plain_pickle(tmp_path / "file")
