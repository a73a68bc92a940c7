"""Tensors of PyTorch's own files (.pt, .pth), read without executing anything in them.

Such a file is a zip archive of uncompressed members: `NAME/data.pkl`, a pickled object, and `NAME/data/0`, …,
the values of its tensors. Unpickling can call any function of any package. So here a small interpreter of our
own runs the pickle's instructions. It knows plain values, dictionaries, lists, tuples, and the calls that
construct a tensor; it rejects everything else by name.
"""

import dataclasses
import io
import os
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ge3d_jax.core.errors import UserError, reason, shown
from ge3d_jax.diffusion.weights.tensor_files import StoredTensor

# A checkpoint's description takes about 100 kB; its members are not much larger than its tensors.
_LONGEST_PICKLE = 2**26
_MOST_AXES = 32

# Storage classes, and the dtypes of their values.
_STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("<i1"),
    "ByteStorage": np.dtype("<u1"),
    "BoolStorage": np.dtype("?"),
}


class _Damaged(Exception):
    """The file is malformed; the text completes "FILE cannot be read: …"."""


@dataclasses.dataclass(frozen=True)
class _Global:
    """A global name that the pickle refers to."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The values of one or more tensors: a member of the archive."""

    member: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class TorchTensor:
    """A tensor in a file.

    Attributes:
        storage: where its values are.
        offset: the index of its first value there.
        shape: its shape.
        strides: the distance between neighbors along each axis, in values.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _rebuild_tensor(arguments: tuple[Any, ...]) -> TorchTensor:
    """`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, …)`."""
    if len(arguments) < 4 or not isinstance(arguments[0], _Storage):
        raise _Damaged("a tensor in it has no storage")
    storage, offset, shape, strides = arguments[:4]
    lengths_fit = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if not lengths_fit or len(shape) > _MOST_AXES or not all(map(_is_count, (offset, *shape, *strides))):
        raise _Damaged("a tensor in it has no valid shape")
    if 0 not in shape:
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if last >= storage.count:
            raise _Damaged(f"a tensor of shape {shown(shape)} is longer than its storage")
    return TorchTensor(storage, offset, shape, strides)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> TorchTensor:
    """`torch._utils._rebuild_parameter(tensor, requires_grad, hooks)`."""
    if not arguments or not isinstance(arguments[0], TorchTensor):
        raise _Damaged("a parameter in it has no tensor")
    return arguments[0]


def _empty_dictionary(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """`collections.OrderedDict()`."""
    if arguments:
        raise _Damaged("it calls collections.OrderedDict with arguments")
    return {}


# What a pickle may call, and what runs in its place.
_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "collections.OrderedDict": _empty_dictionary,
}


class _Machine:
    """Interprets the instructions of a pickle of protocol 2, which is what PyTorch writes."""

    def __init__(self) -> None:
        """Start with an empty stack."""
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memory: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        """Return the unpickled object. Raises _Damaged if there is anything but values and tensors."""
        for instruction, argument, _ in pickletools.genops(io.BytesIO(pickled)):
            if instruction.name == "STOP":
                return self._pop()
            self._follow(instruction.name, argument)
        raise _Damaged("its data.pkl does not end")

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise _Damaged("its data.pkl reads what is not there")
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise _Damaged("its data.pkl reads what is not there")
        place = self._marks.pop()
        values = self._stack[place:]
        del self._stack[place:]
        return values

    def _top(self, kind: type) -> Any:
        """Return the top of the stack without popping it."""
        value = self._pop()
        if not isinstance(value, kind):
            raise _Damaged(f"its data.pkl changes {shown(value)}")
        self._stack.append(value)
        return value

    def _follow(self, name: str, argument: Any) -> None:
        push = self._stack.append
        match name:
            case "PROTO":
                pass
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                push(argument)
            case "MARK":
                self._marks.append(len(self._stack))
            case "TUPLE":
                push(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [self._pop() for _ in range(int(name[-1]))]
                push(tuple(reversed(values)))
            case "BINPUT" | "LONG_BINPUT":
                self._memory[argument] = self._pop()
                push(self._memory[argument])
            case "BINGET" | "LONG_BINGET":
                if argument not in self._memory:
                    raise _Damaged("its data.pkl reads what is not there")
                push(self._memory[argument])
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._since_mark())
            case "APPEND":
                value = self._pop()
                self._top(list).append(value)
            case "APPENDS":
                values = self._since_mark()
                self._top(list).extend(values)
            case "GLOBAL":
                push(_Global(argument.replace(" ", ".", 1)))
            case "BINPERSID":
                push(_storage(self._pop()))
            case "REDUCE":
                arguments, called = self._pop(), self._pop()
                push(_call(called, arguments))
            case "BUILD":
                # The state of PyTorch's OrderedDict besides its items: the versions of modules.
                self._pop()
                self._top(dict)
            case _:
                raise _Damaged(f"its data.pkl has the instruction {name}, which PyTorch does not write")

    def _set(self, pairs: list[Any]) -> None:
        target = self._top(dict)
        if len(pairs) % 2:
            raise _Damaged("its data.pkl has a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise _Damaged(f"its data.pkl has the key {shown(key)}")
            target[key] = value


def _call(called: Any, arguments: Any) -> Any:
    name = called.name if isinstance(called, _Global) else shown(called)
    if name not in _CALLS or not isinstance(arguments, tuple):
        raise _Damaged(f"it calls {shown(name)}, which is not a tensor and could do anything")
    return _CALLS[name](arguments)


def _storage(description: Any) -> _Storage:
    """Interpret a description such as `("storage", torch.FloatStorage, "0", "cpu", 12)`."""
    match description:
        case ("storage", _Global(name), str(member), str(), count) if _is_count(count):
            kind = name.removeprefix("torch.")
            if kind not in _STORAGES or kind == name:
                raise _Damaged(f"a tensor in it is of the type {shown(name)}")
            return _Storage(member, _STORAGES[kind], count)
    raise _Damaged("a tensor in it has no storage")


class TorchFile:
    """An opened file, whose `tensors` are read on demand."""

    def __init__(self, file: Path) -> None:
        """Open the file; see `open_torch_tensors`. Raises _Damaged, OSError, and zipfile's errors."""
        self._archive = zipfile.ZipFile(file)
        self._members = {info.filename: info for info in self._archive.infolist()}
        size = file.stat().st_size
        for info in self._members.values():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                raise _Damaged(f"its member {shown(info.filename)} is compressed, which PyTorch's never are")
        pickles = [name for name in self._members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Damaged("it has no data.pkl, which every PyTorch file has")
        self._folder = pickles[0].partition("/")[0]
        order = f"{self._folder}/byteorder"
        if order in self._members and self._archive.read(order).strip() != b"little":
            raise _Damaged("its numbers are big-endian")
        if self._members[pickles[0]].file_size > _LONGEST_PICKLE:
            raise _Damaged("its data.pkl is far too long")
        self.content = _Machine().run(self._archive.read(pickles[0]))

    def check(self, tensor: TorchTensor) -> None:
        """Raise _Damaged if some of the tensor's values are missing."""
        name = self._member(tensor)
        needed = tensor.storage.count * tensor.storage.dtype.itemsize
        if name not in self._members or self._members[name].file_size < needed:
            raise _Damaged(f"its member {shown(name)} is missing or too short")

    def _member(self, tensor: TorchTensor) -> str:
        return f"{self._folder}/data/{tensor.storage.member}"

    def read(self, tensor: TorchTensor) -> np.ndarray:
        """Read the tensor's values as an array that owns them."""
        storage = tensor.storage
        numbers = np.frombuffer(self._archive.read(self._member(tensor)), storage.dtype, storage.count)
        strides = tuple(stride * storage.dtype.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)
        return np.array(view)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """The interface through which `StoredTensor` reads its values."""

    file: TorchFile
    tensors: dict[str, TorchTensor]

    def get_tensor(self, name: str) -> np.ndarray:
        """Return the tensor of that name."""
        return self.file.read(self.tensors[name])


def open_torch_tensors(file: str | os.PathLike[str], *, inside: str | None = None) -> dict[str, StoredTensor]:
    """Return all tensors of a PyTorch file by name.

    Args:
        file: a .pt or .pth file, written by `torch.save` of PyTorch 1.6 or later.
        inside: if the file holds several objects, the key of the one to open; a file that holds the tensors
            themselves has no such key.

    Returns:
        The tensors, which are read on demand.

    Raises:
        UserError: the file is missing or damaged, is in the format of an older PyTorch, or holds anything
            other than tensors and plain values (the message names it).
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path} is missing; copy or download it again.")
    try:
        opened = TorchFile(path)
        tensors = _tensors_of(opened.content, inside)
        for tensor in tensors.values():
            opened.check(tensor)
    except _Damaged as error:
        raise UserError(f"{path} cannot be read: {error}; use the published file.") from None
    # Anything that Python's zip and pickle readers raise for a damaged file.
    except Exception as error:
        raise UserError(
            f"{path} is not a readable PyTorch file ({reason(error)}); copy or download it again, or save it "
            "with PyTorch 1.6 or later."
        ) from error
    reader = _Reader(opened, tensors)
    return {name: StoredTensor(path, name, tensor.shape, reader) for name, tensor in tensors.items()}


def _tensors_of(content: Any, inside: str | None) -> dict[str, TorchTensor]:
    """Return the tensors, by name, in a file's content. Raises _Damaged if there is anything else."""
    if isinstance(content, dict) and inside in content:
        content = content[inside]
    if not isinstance(content, dict) or not content:
        raise _Damaged("it holds no tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, TorchTensor):
            raise _Damaged(f"what it holds as {shown(name)} is not a tensor")
    return content
