"""PyTorch files without PyTorch: the bytes of `torch.save`, assembled by hand."""

import pickle
import struct
import zipfile

import numpy as np

_STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
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


def tensor(member, dtype, count, shape, strides=None, offset=0, *, older=False):
    """The opcodes of a tensor whose data is a storage; before PyTorch 1.6, a view's data ended with None."""
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    storage = b"(" + text("storage") + name("torch", _STORAGES[dtype]) + text(member) + text("cpu")
    persistent = storage + number(count) + (b"N" if older else b"") + b"tQ"
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


# What files of PyTorch before 1.6 begin with.
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


def write_older(file, content, storages, *, magic=MAGIC, version=VERSION, little=True, keys=None):
    """Write a file like PyTorch before 1.6: pickles, and then each storage, a length and bytes by key."""
    machine = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    pickles = [pickle.dumps(each, protocol=2) for each in (magic, version, machine)]
    keys = pickle.dumps(list(storages) if keys is None else keys, protocol=2)
    data = b"".join(struct.pack("<q", count) + values for count, values in storages.values())
    file.write_bytes(b"".join(pickles) + b"\x80\x02" + content + b"." + keys + data)
    return file


def save_older_arrays(file, arrays):
    """Write arrays by name like `save_arrays`, as PyTorch did before 1.6."""
    tensors = {
        key: tensor(f"{index}0", array.dtype.name, array.size, array.shape, older=True)
        for index, (key, array) in enumerate(arrays.items())
    }
    storages = {f"{index}0": (array.size, array.tobytes()) for index, array in enumerate(arrays.values())}
    return write_older(file, mapping(tensors), storages)
