"""Flax weights: diffusers' `diffusion_flax_model.msgpack` and transformers' `flax_model.msgpack`.

A file holds a tree of arrays with Flax's names and axes (`down_blocks_0/resnets_0/conv1/kernel`), or, if it
is one of several, some branches of the tree. Here the arrays look like the tensors of a safetensors file,
with PyTorch's names and axes. The whole file is read into memory, since the format cannot be read in parts.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict

from ge3d_jax.core.errors import UserError, reason
from ge3d_jax.diffusion.weights.parameters import tensor_name, to_tensor
from ge3d_jax.diffusion.weights.tensor_files import StoredTensor

SUFFIX = ".msgpack"
_LEAVES = ("kernel", "bias", "scale", "embedding")


class _Arrays:
    """Arrays by tensor name, with the methods that we use of an opened safetensors file."""

    def __init__(self, arrays: dict[str, tuple[tuple[str, ...], np.ndarray]]) -> None:
        self._arrays = arrays

    def get_tensor(self, name: str) -> np.ndarray:
        return to_tensor(*self._arrays[name])

    def get_slice(self, name: str) -> np.ndarray:
        return self.get_tensor(name)


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    """Return the leaves by path; parts of a path may be joined by slashes."""
    if not isinstance(tree, dict) or not tree:
        raise ValueError("it does not hold a tree of arrays")
    return {
        tuple(part for key in path for part in str(key).split("/")): leaf
        for path, leaf in flatten_dict(tree).items()
    }


def open_flax(file: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Return all arrays of a Flax file as tensors, by PyTorch's names.

    Raises:
        UserError: the file is missing or not of this format.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file} is missing; copy or download it again.")
    try:
        leaves = _flat(msgpack_restore(file.read_bytes()))
        arrays = {}
        for path, leaf in leaves.items():
            value = np.asarray(leaf)
            if path[-1] not in _LEAVES or value.ndim > 4 or value.dtype == object:
                raise ValueError(f"{'/'.join(path)[:80]} is not a parameter of Flax")
            arrays[tensor_name(path)] = (path, value)
    # Decoding a damaged file fails in many ways.
    except Exception as error:
        raise UserError(
            f"{file} is not a readable file of Flax weights ({reason(error)}); copy or download it again."
        ) from error
    opened = _Arrays(arrays)
    return {name: StoredTensor(file, name, opened.get_tensor(name).shape, opened) for name in arrays}
