"""PyTorch files without PyTorch: the bytes of `torch.save`, assembled by hand."""

import struct
import zipfile

import numpy as np

_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "bfloat16": "BFloat16Storage",
}


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def call(module, attribute, arguments):
    """The opcodes of a call with arguments, given as a tuple's opcodes."""
    return name(module, attribute) + arguments + b"R"


def mapping(items):
    """The opcodes of a dictionary from strings to opcodes."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def tensor(member, dtype, count, shape, strides=None, offset=0):
    """The opcodes of a tensor whose data is an archive member."""
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    storage = b"(" + text("storage") + name("torch", _STORAGES[dtype]) + text(member) + text("cpu")
    persistent = storage + number(count) + b"tQ"
    hooks = name("collections", "OrderedDict") + b")R"
    arguments = (
        b"(" + persistent + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + hooks + b"t"
    )
    return call("torch._utils", "_rebuild_tensor_v2", arguments)


def write(file, content, members, *, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    """Write a file with the object given by opcodes and the members' bytes."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("archive/byteorder", byteorder)
        for member, data in members.items():
            archive.writestr(f"archive/data/{member}", data)
        archive.writestr("archive/version", b"3\n")
    return file


def save_arrays(file, arrays, *, wrap=None, **others):
    """Write arrays by name like `torch.save` of a state dict, which may be one of several entries, `wrap`."""
    tensors = {
        key: tensor(str(index), array.dtype.name, array.size, array.shape)
        for index, (key, array) in enumerate(arrays.items())
    }
    content = mapping(tensors)
    if wrap is not None:
        content = mapping({"epoch": number(3), wrap: content, "optimizer": b"](NNe"})
    members = {str(index): array.tobytes() for index, array in enumerate(arrays.values())}
    return write(file, content, members, **others)
