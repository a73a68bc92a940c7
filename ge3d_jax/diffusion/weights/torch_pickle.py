"""The pickled objects in PyTorch's files, read without executing anything in them.

Unpickling can call any function of any package. So here a small interpreter of our own runs the pickle's
instructions. It knows plain values, dictionaries, lists, tuples, the calls that construct a tensor, and
TorchScript's modules as nothing but their attributes; it rejects everything else by name.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import IO, Any

import ml_dtypes
import numpy as np

from ge3d_jax.core.errors import shown

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


class Damaged(Exception):
    """The file is malformed; the text completes "FILE cannot be read: …"."""


@dataclasses.dataclass(frozen=True)
class _Global:
    """A global name that the pickle refers to."""

    name: str


class Module(dict[str, Any]):
    """The attributes of a module of TorchScript: its tensors, modules, and plain values, by name."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """The values of one or more tensors.

    Attributes:
        member: its name in the file.
        dtype: dtype of the values.
        count: number of values.
    """

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

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _rebuild_tensor(arguments: tuple[Any, ...]) -> TorchTensor:
    """`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, …)`."""
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        raise Damaged("a tensor in it has no storage")
    storage, offset, shape, strides = arguments[:4]
    lengths_fit = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if not lengths_fit or len(shape) > _MOST_AXES or not all(map(_is_count, (offset, *shape, *strides))):
        raise Damaged("a tensor in it has no valid shape")
    if 0 not in shape:
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        # Repeated values, along an axis without a stride, could be any number.
        if last >= storage.count or math.prod(shape) > storage.count:
            raise Damaged(f"a tensor of shape {shown(shape)} is longer than its storage")
    return TorchTensor(storage, offset, shape, strides)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> TorchTensor:
    """`torch._utils._rebuild_parameter(tensor, requires_grad, hooks)`."""
    if not arguments or not isinstance(arguments[0], TorchTensor):
        raise Damaged("a parameter in it has no tensor")
    return arguments[0]


def _empty_dictionary(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """`collections.OrderedDict()`."""
    if arguments:
        raise Damaged("it calls collections.OrderedDict with arguments")
    return {}


# What a pickle may call, and what runs in its place.
_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "collections.OrderedDict": _empty_dictionary,
}


class Machine:
    """Interprets the instructions of a pickle of protocol 2, which is what PyTorch writes.

    Attributes:
        storages: all storages that the pickle refers to.
    """

    def __init__(self) -> None:
        """Start with an empty stack."""
        self.storages: list[Storage] = []
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memory: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """Read one pickled object from a file, and no byte beyond it.

        Raises:
            Damaged: there is anything but values and tensors.
            ValueError: the file ends too early.
        """
        for instruction, argument, _ in pickletools.genops(file):
            if instruction.name == "STOP":
                return self._pop()
            self._follow(instruction.name, argument)
        raise Damaged("its data.pkl does not end")

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Damaged("its data.pkl reads what is not there")
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise Damaged("its data.pkl reads what is not there")
        place = self._marks.pop()
        values = self._stack[place:]
        del self._stack[place:]
        return values

    def _top(self, kind: type) -> Any:
        """Return the top of the stack without popping it."""
        value = self._pop()
        if not isinstance(value, kind):
            raise Damaged(f"its data.pkl changes {shown(value)}")
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
                    raise Damaged("its data.pkl reads what is not there")
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
                self.storages.append(_storage(self._pop()))
                push(self.storages[-1])
            case "REDUCE":
                arguments, called = self._pop(), self._pop()
                push(_call(called, arguments))
            case "NEWOBJ":
                arguments, called = self._pop(), self._pop()
                push(_new_module(called, arguments))
            case "BUILD":
                state, target = self._pop(), self._top(dict)
                # That of an OrderedDict holds the versions of modules, besides its items.
                if isinstance(target, Module):
                    target.update(_attributes(state))
            case _:
                raise Damaged(f"its data.pkl has the instruction {name}, which PyTorch does not write")

    def _set(self, pairs: list[Any]) -> None:
        target = self._top(dict)
        if len(pairs) % 2:
            raise Damaged("its data.pkl has a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise Damaged(f"its data.pkl has the key {shown(key)}")
            target[key] = value


def _call(called: Any, arguments: Any) -> Any:
    name = called.name if isinstance(called, _Global) else shown(called)
    if name not in _CALLS or not isinstance(arguments, tuple):
        raise Damaged(f"it calls {shown(name)}, which is not a tensor and could do anything")
    return _CALLS[name](arguments)


def _new_module(called: Any, arguments: Any) -> Module:
    name = called.name if isinstance(called, _Global) else shown(called)
    if not name.startswith("__torch__.") or arguments != ():
        raise Damaged(f"it makes a {shown(name)}, which is not a tensor and could do anything")
    return Module()


def _attributes(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise Damaged("a module in it has no attributes by name")
    return state


def _storage(description: Any) -> Storage:
    """Interpret a description such as `("storage", torch.FloatStorage, "0", "cpu", 12)`.

    Before 1.6, PyTorch appended which part of another storage it is; that is None in all files since 0.4.
    """
    match description:
        case ("storage", _Global(name), str(member), str(), count, *rest) if _is_count(count) and rest in (
            [],
            [None],
        ):
            kind = name.removeprefix("torch.")
            if kind not in _STORAGES or kind == name:
                raise Damaged(f"a tensor in it is of the type {shown(name)}")
            return Storage(member, _STORAGES[kind], count)
    raise Damaged("a tensor in it has no storage")
