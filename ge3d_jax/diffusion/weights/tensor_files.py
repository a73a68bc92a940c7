"""Safetensors files as mappings from names to tensors that are read on demand.

Files are memory-mapped and never read as a whole: besides the network itself, only one tensor is in memory.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from ge3d_jax.core.errors import UserError, reason, shown
from ge3d_jax.core.files import parse_json

# Endings of PyTorch's own files.
TORCH_SUFFIXES = (".pt", ".pth", ".bin")


def _kind(file: Path) -> str:
    return "PyTorch" if file.suffix.lower() in TORCH_SUFFIXES else "safetensors"


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    # Besides its own errors, the library raises others, e.g. for types that NumPy does not have.
    except Exception as error:
        raise UserError(
            f"{file} is not a readable {_kind(file)} file ({reason(error)}); copy or download it again."
        ) from error


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, or some of its rows.

    Attributes:
        file: path of the file.
        name: name in the file.
        shape: shape of the result of `read`.
        opened: the opened file.
        rows: first and one past the last row of the stored tensor; None for all.
        turned: whether `read` transposes what is stored.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    opened: Any
    rows: tuple[int, int] | None = None
    turned: bool = False

    def read(self) -> np.ndarray:
        """Read a copy of the tensor, in its stored dtype."""
        with _readable(self.file):
            if self.rows is not None:
                return self.opened.get_slice(self.name)[slice(*self.rows)]
            whole = self.opened.get_tensor(self.name)
            return whole.T if self.turned else whole

    def take_rows(self, first: int, end: int) -> "StoredTensor":
        """Select the rows `first` to `end` (exclusive) of a whole tensor."""
        return dataclasses.replace(self, shape=(end - first, *self.shape[1:]), rows=(first, end))

    def transposed(self) -> "StoredTensor":
        """Transpose a whole tensor."""
        return dataclasses.replace(self, shape=self.shape[::-1], turned=True)


def open_tensors(file: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Return all tensors of a safetensors file by name.

    Raises:
        UserError: the file is missing or not a safetensors file.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file} is missing; copy or download it again.")
    with _readable(file):
        opened = safe_open(file, framework="np")
        return {
            name: StoredTensor(file, name, tuple(opened.get_slice(name).get_shape()), opened)
            for name in opened.keys()
        }


def read_metadata(file: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata in a safetensors file's header.

    Raises:
        UserError: it is not a safetensors file.
    """
    with _readable(Path(file)), safe_open(file, framework="np") as opened:
        return opened.metadata() or {}


def shards(index: str | os.PathLike[str]) -> list[str]:
    """Return the files that an index (`….safetensors.index.json`) names, relative to it.

    Raises:
        UserError: the index is missing or damaged.
    """
    weight_map = read_json(Path(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; copy or download it again.")
    for name in weight_map.values():
        # An arbitrary path could lead anywhere.
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\0" in name:
            raise UserError(
                f"{index}: its weight_map names {shown(name)}, which is not a file next to it; "
                "copy or download it again."
            )
    return sorted(set(weight_map.values()))


def rename_tensors(
    tensors: Mapping[str, StoredTensor], rename: Callable[[str], str | None]
) -> dict[str, StoredTensor]:
    """Rename tensors.

    Args:
        tensors: by their names in the file.
        rename: maps a name to the new one, or to None to ignore the tensor.

    Returns:
        The tensors by their new names.

    Raises:
        UserError: two tensors have the same new name.
    """
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        new = rename(name)
        if new is None:
            continue
        if new in renamed:
            raise UserError(
                f"{tensor.file} holds the unexpected tensor {name}, of shape {tensor.shape}, which is "
                f"{renamed[new].name} under another name; use weights that hold it once."
            )
        renamed[new] = tensor
    return renamed


def read_json(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        UserError: the file is missing, is not JSON, or does not hold an object.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; the model is incomplete, copy or download it again.")
    try:
        content = parse_json(file)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{file} is not readable JSON ({reason(error)}); copy or download it again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object; copy or download it again.")
    return content
