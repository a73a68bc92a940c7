"""Pickles that other packages use as data files, read without executing anything in them."""

import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from ge3d_jax.core.errors import shown


def _empty_array(*_: Any) -> np.ndarray:
    """What an array is unpickled into; its shape, dtype, and values follow."""
    return np.ndarray(0, np.uint8)


# What a pickle may ask for, and what it gets. NumPy 2 renamed the module that older pickles name.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what the pickle may have, and reject any other class or function by name."""
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {shown(f'{module}.{name}')}")
        return _KNOWN[module, name]


def load_plain_pickle(file: str | os.PathLike[str]) -> Any:
    """Read a pickle of dictionaries, lists, numbers, strings, and NumPy arrays.

    Raises:
        pickle.UnpicklingError: it asks for any other class or function.
        Exception: the file is missing or damaged; Python's and NumPy's readers raise almost any.
    """
    with open(file, "rb") as opened:
        return _PlainUnpickler(opened).load()
