"""Tensors of PyTorch's own files (.pt, .pth, .bin), read without executing anything in them.

Since PyTorch 1.6, such a file is a zip archive of uncompressed members: `NAME/data.pkl`, a pickled object,
and `NAME/data/0`, …, the values of its tensors. Before, it was a sequence of pickles (a magic number, a
version, a description of the machine, the object, and the names of its storages), followed by each storage:
its length as an int64, and its values. FID's Inception is still distributed in that form. TorchScript's
files, such as OpenAI's CLIP, are archives that also hold code, which is not read. See `torch_pickle` for the
pickles.
"""

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ge3d_jax.core.errors import UserError, reason, shown
from ge3d_jax.diffusion.weights.tensor_files import TORCH_SUFFIXES, StoredTensor, open_tensors
from ge3d_jax.diffusion.weights.torch_pickle import Damaged, Machine, Module, Storage, TorchTensor

# A checkpoint's description takes about 100 kB; its members are not much larger than its tensors.
_LONGEST_PICKLE = 2**26
# What files of the older form begin with.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_LENGTH = np.dtype("<i8")


class _Container(Protocol):
    """An opened file: `content`, the object in it, and the values of its storages."""

    content: Any

    def size(self, storage: Storage) -> int | None:
        """How many bytes of the storage the file holds; None if it does not have the storage."""

    def values(self, storage: Storage) -> bytes:
        """Read the storage's values, and possibly more."""


class _Archive:
    """A file of PyTorch 1.6 or later."""

    def __init__(self, file: Path) -> None:
        """Open the file. Raises Damaged, OSError, and zipfile's errors."""
        self._archive = zipfile.ZipFile(file)
        self._members = {info.filename: info for info in self._archive.infolist()}
        pickles = [name for name in self._members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Damaged("it has no data.pkl, which every PyTorch file has")
        self._folder = pickles[0].partition("/")[0]
        size, order = file.stat().st_size, f"{self._folder}/byteorder"
        for name, info in self._members.items():
            is_read = name in (pickles[0], order) or name.startswith(f"{self._folder}/data/")
            if is_read and (info.compress_type != zipfile.ZIP_STORED or info.file_size > size):
                raise Damaged(f"its member {shown(name)} is compressed, which PyTorch's never are")
        if order in self._members and self._archive.read(order).strip() != b"little":
            raise Damaged("its numbers are big-endian")
        if self._members[pickles[0]].file_size > _LONGEST_PICKLE:
            raise Damaged("its data.pkl is far too long")
        with self._archive.open(pickles[0]) as pickled:
            self.content = Machine().run(pickled)

    def _member(self, storage: Storage) -> str:
        return f"{self._folder}/data/{storage.member}"

    def size(self, storage: Storage) -> int | None:
        """See `_Container`."""
        info = self._members.get(self._member(storage))
        return None if info is None else info.file_size

    def values(self, storage: Storage) -> bytes:
        """See `_Container`."""
        return self._archive.read(self._member(storage))


class _Sequence:
    """A file of an older PyTorch."""

    def __init__(self, file: Path) -> None:
        """Open the file. Raises Damaged, OSError, and errors of the pickles."""
        self._file = file
        # Where the values of each storage begin, and how many bytes of them there are.
        self._places: dict[str, tuple[int, int]] = {}
        with file.open("rb") as opened:
            magic, version = (Machine().run(opened) for _ in range(2))
            if (magic, version) != (_MAGIC, _VERSION):
                raise Damaged("it does not begin as PyTorch's files do")
            machine = Machine().run(opened)
            if not isinstance(machine, dict) or machine.get("little_endian") is not True:
                raise Damaged("its numbers are big-endian")
            interpreter = Machine()
            self.content = interpreter.run(opened)
            used = {storage.member: storage for storage in interpreter.storages}
            members = Machine().run(opened)
            if not isinstance(members, list):
                raise Damaged("it has no list of its storages")
            place, end = opened.tell(), file.stat().st_size
            for member in members:
                if not isinstance(member, str) or member not in used:
                    raise Damaged(f"no tensor uses its storage {shown(member)}")
                storage = used[member]
                opened.seek(place)
                count = np.frombuffer(opened.read(_LENGTH.itemsize), _LENGTH)
                if len(count) != 1 or count[0] != storage.count:
                    raise Damaged(f"its storage {shown(member)} is missing or of another length")
                place += _LENGTH.itemsize
                size = storage.count * storage.dtype.itemsize
                self._places[member] = place, min(size, max(0, end - place))
                place += size

    def size(self, storage: Storage) -> int | None:
        """See `_Container`."""
        return self._places[storage.member][1] if storage.member in self._places else None

    def values(self, storage: Storage) -> bytes:
        """See `_Container`."""
        place, size = self._places[storage.member]
        with self._file.open("rb") as opened:
            opened.seek(place)
            return opened.read(size)


def _check(container: _Container, tensor: TorchTensor) -> None:
    """Raise Damaged if some of the tensor's values are missing."""
    storage = tensor.storage
    size = container.size(storage)
    if size is None or size < storage.count * storage.dtype.itemsize:
        raise Damaged(f"its storage {shown(storage.member)} is missing or too short")


@dataclasses.dataclass(frozen=True)
class _Reader:
    """The interface through which `StoredTensor` reads its values."""

    container: _Container
    tensors: dict[str, TorchTensor]

    def get_tensor(self, name: str) -> np.ndarray:
        """Read the tensor of that name as an array that owns its values."""
        tensor = self.tensors[name]
        storage = tensor.storage
        numbers = np.frombuffer(self.container.values(storage), storage.dtype, storage.count)
        strides = tuple(stride * storage.dtype.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)
        return np.array(view)

    def get_slice(self, name: str) -> np.ndarray:
        """Like `get_tensor`; the caller selects the rows."""
        return self.get_tensor(name)


def open_torch_tensors(file: str | os.PathLike[str], *, inside: str | None = None) -> dict[str, StoredTensor]:
    """Return all tensors of a PyTorch file by name.

    Args:
        file: a .pt, .pth, or .bin file, written by `torch.save`.
        inside: if the file holds several objects, the key of the one to open; a file that holds the tensors
            themselves has no such key.

    Returns:
        The tensors, which are read on demand.

    Raises:
        UserError: the file is missing or damaged, or holds anything other than tensors and plain values (the
            message names it).
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path} is missing; copy or download it again.")
    try:
        opened: _Container = _Archive(path) if zipfile.is_zipfile(path) else _Sequence(path)
        tensors = _tensors_of(opened.content, inside)
        for tensor in tensors.values():
            _check(opened, tensor)
    except Damaged as error:
        raise UserError(f"{path} cannot be read: {error}; use the published file.") from None
    # Anything that Python's zip and pickle readers raise for a damaged file.
    except Exception as error:
        raise UserError(
            f"{path} is not a readable PyTorch file ({reason(error)}); copy or download it again."
        ) from error
    reader = _Reader(opened, tensors)
    return {name: StoredTensor(path, name, tensor.shape, reader) for name, tensor in tensors.items()}


def open_any_tensors(file: str | os.PathLike[str], *, inside: str | None = None) -> dict[str, StoredTensor]:
    """Return all tensors of a PyTorch or safetensors file, told apart by the name's ending.

    Args:
        file: the file.
        inside: see `open_torch_tensors`.

    Raises:
        UserError: see `open_torch_tensors` and `open_tensors`.
    """
    if Path(file).suffix.lower() in TORCH_SUFFIXES:
        return open_torch_tensors(file, inside=inside)
    return open_tensors(file)


def _tensors_of(content: Any, inside: str | None) -> dict[str, TorchTensor]:
    """Return the tensors, by name, in a file's content. Raises Damaged if there is anything else."""
    if isinstance(content, Module):
        content = _tensors_of_module(content)
    elif isinstance(content, dict) and inside in content:
        content = content[inside]
    if not isinstance(content, dict) or not content:
        raise Damaged("it holds no tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, TorchTensor):
            raise Damaged(f"what it holds as {shown(name)} is not a tensor")
    return content


def _tensors_of_module(module: Module, prefix: str = "") -> dict[str, TorchTensor]:
    """Return the tensors of a module and of those in it by their names in a dictionary of tensors."""
    tensors: dict[str, TorchTensor] = {}
    for name, value in module.items():
        if isinstance(value, Module):
            tensors |= _tensors_of_module(value, f"{prefix}{name}.")
        elif isinstance(value, TorchTensor):
            tensors[f"{prefix}{name}"] = value
    return tensors
