"""Splats in binary glTF 2.0 (.glb) with the extension KHR_gaussian_splatting.

A primitive of points has the attributes POSITION and, each prefixed by `KHR_gaussian_splatting:`,

    ROTATION                  unit quaternion x, y, z, w
    SCALE                     standard deviations, not their logarithms
    OPACITY                   in [0, 1]
    SH_DEGREE_l_COEF_n        n = 0 … 2l for every degree l: red, green, and blue, with signs as in 3DGS

COLOR_0 is linear light, for programs that draw plain points. glTF has y up, z forward, and x left. We write
float32; files from other writers may also hold normalized integers.
"""

import collections
import dataclasses
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.core.files import atomic_path
from ge3d_jax.formats.axes import scaled, turn_matrix, turned
from ge3d_jax.formats.splat_arrays import (
    SplatArrays,
    SplatFile,
    check_holds_splats,
    concatenated,
    finite_scales,
    live_finite_arrays,
    logits_of,
    normalized,
    opacities,
    opacity_bytes,
    open_splat_file,
    sound_splats,
    to_gaussians,
    to_levels,
)
from ge3d_jax.formats.srgb import to_linear
from ge3d_jax.formats.typed_json import JsonReader
from ge3d_jax.splatting.gaussians import MAX_SH_DEGREE, MIN_SCALE, SH_C0, Gaussians

_EXTENSION = "KHR_gaussian_splatting"
# Display values, as in 3DGS. The other space is blended as linear light.
_COLOR_SPACE = "srgb_rec709_display"
_MAGIC, _VERSION = 0x46546C67, 2
_HEADER, _CHUNK = struct.Struct("<III"), struct.Struct("<II")
_JSON, _BINARY = 0x4E4F534A, 0x004E4942
_POINTS, _ARRAY_BUFFER = 0, 34962
_FLOAT, _UNSIGNED_BYTE = 5126, 5121
# NumPy's name and the full value of each component type; floats are not scaled.
_COMPONENTS = {
    5120: ("<i1", 127.0),
    5121: ("<u1", 255.0),
    5122: ("<i2", 32767.0),
    5123: ("<u2", 65535.0),
    _FLOAT: ("<f4", None),
}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
# Bounds on the length of a file's JSON description and on the nesting of its nodes.
_LONGEST_JSON = 2**24
_DEEPEST = 64
# Positions alone take at least six bytes per splat; this bounds how much repeated meshes can expand a file.
_LEAST_BYTES = 6
# A scene has one part, or one per object.
_MOST_PARTS = 2**12
# How far a node's matrix may deviate from a rotation with a uniform scale.
_SKEW = 1e-3


def save_glb(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write the splats in use (`mask`); the same splats give the same bytes.

    Args:
        path: file to write.
        gaussians: the splats; coordinates are written as they are.

    Raises:
        UserError: a splat is not finite, or its scale overflows float32.
    """
    arrays = live_finite_arrays(Path(path), gaussians)
    scales = finite_scales(Path(path), arrays.log_scales)
    colors = to_levels(255.0 * to_linear(0.5 + SH_C0 * arrays.sh[:, 0].astype(np.float64)))
    alphas = opacity_bytes(arrays.opacity_logits)
    unit = normalized(arrays.quaternions)
    attributes = {
        "POSITION": arrays.positions,
        "COLOR_0": np.concatenate([colors, alphas[:, None]], axis=1),
        f"{_EXTENSION}:ROTATION": unit[:, [1, 2, 3, 0]],
        f"{_EXTENSION}:SCALE": scales,
        f"{_EXTENSION}:OPACITY": opacities(arrays.opacity_logits).astype(np.float32)[:, None],
    }
    for number, name in enumerate(_coefficient_names(arrays.sh.shape[1])):
        attributes[name] = arrays.sh[:, number]
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    parts: list[bytes] = []
    place = 0
    for values in attributes.values():
        is_color = values.dtype == np.uint8
        data = values.tobytes() if is_color else values.astype("<f4").tobytes()
        kind = {width: name for name, width in _WIDTHS.items()}[values.shape[1]]
        accessor = {
            "bufferView": len(views),
            "componentType": _UNSIGNED_BYTE if is_color else _FLOAT,
            "count": len(values),
            "type": kind,
        }
        accessors.append(accessor | ({"normalized": True} if is_color else {}))
        view = {"buffer": 0, "byteOffset": place, "byteLength": len(data), "target": _ARRAY_BUFFER}
        views.append(view)
        parts.append(data)
        place += len(data)
    for name, reduce in (("min", np.min), ("max", np.max)):
        accessors[0][name] = reduce(arrays.positions, axis=0).astype(float).tolist() if place else [0.0] * 3
    extension = {"kernel": "ellipse", "colorSpace": _COLOR_SPACE}
    extension |= {"projection": "perspective", "sortingMethod": "cameraDistance"}
    primitive = {
        "mode": _POINTS,
        "attributes": {name: number for number, name in enumerate(attributes)},
        "extensions": {_EXTENSION: extension},
    }
    content = {
        "asset": {"version": "2.0", "generator": "ge3d_jax"},
        "extensionsUsed": [_EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": place}],
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    # Every part is padded to a multiple of four bytes, as chunks require.
    text += b" " * (-len(text) % 4)
    length = _HEADER.size + 2 * _CHUNK.size + len(text) + place
    if length >= 2**32:
        raise UserError(f"{path} cannot hold more than 4 GB; write a .ply file instead.")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, length) + _CHUNK.pack(len(text), _JSON) + text)
        file.write(_CHUNK.pack(place, _BINARY))
        for part in parts:
            file.write(part)


def _coefficient_names(count: int) -> list[str]:
    degrees = range(int(np.sqrt(count)))
    return [f"{_EXTENSION}:SH_DEGREE_{band}_COEF_{n}" for band in degrees for n in range(2 * band + 1)]


def read_glb(path: str | os.PathLike[str]) -> SplatFile:
    """Read the splats of a .glb file, from all meshes in its scene, transformed by their nodes.

    Args:
        path: file to read.

    Returns:
        The splats that can be drawn, in the file's coordinates.

    Raises:
        UserError: the file is missing, truncated, or damaged, holds no splats, keeps its data elsewhere, or
            a node stretches or mirrors them; the message names the file and the part.

    Warns:
        UserWarning: splats were left out.
    """
    path = Path(path)
    with open_splat_file(path) as (file, length):
        check_holds_splats(path, length)
        content, data = _chunks(path, file.read(length))
    lists = (content.objects(name) for name in ("accessors", "bufferViews", "buffers"))
    numbers = _Numbers(path, data, *lists)
    found = [
        _moved(path, _splats(path, numbers, primitive), matrix)
        for primitive, matrix in _shown(path, content, numbers.accessors, length)
    ]
    if not found:
        raise UserError(
            f"{path} holds no splats: none of its meshes has the extension {_EXTENSION} "
            "(perhaps it is an ordinary mesh); give a splat file."
        )
    bands = max(part.sh.shape[1] for part in found)
    for number, part in enumerate(found):
        missing = ((0, 0), (0, bands - part.sh.shape[1]), (0, 0))
        found[number] = dataclasses.replace(part, sh=np.pad(part.sh, missing))
    arrays = concatenated(found)
    check_holds_splats(path, len(arrays.positions))
    return SplatFile(to_gaussians(sound_splats(path, arrays)))


def holds_splats(path: Path) -> bool:
    """Whether a .glb file declares splats. Raises UserError if it cannot be read."""
    with open_splat_file(path) as (file, length):
        start = file.read(_HEADER.size + _CHUNK.size)
        size = _CHUNK.unpack_from(start, _HEADER.size)[0] if len(start) == _HEADER.size + _CHUNK.size else 0
        return _EXTENSION.encode() in file.read(min(size, length, _LONGEST_JSON))


def _chunks(path: Path, data: bytes) -> tuple[JsonReader, bytes]:
    """Return a file's JSON description and its binary data."""
    if len(data) < _HEADER.size + _CHUNK.size or _HEADER.unpack_from(data)[0] != _MAGIC:
        raise UserError(f"{path} is not a .glb file: it does not start with 'glTF'; give a splat file.")
    _, version, _ = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise UserError(f"{path} is a .glb file of version {version}; export it as glTF 2.0.")
    place = _HEADER.size
    found: dict[int, bytes] = {}
    while place + _CHUNK.size <= len(data):
        size, kind = _CHUNK.unpack_from(data, place)
        place += _CHUNK.size
        if size > len(data) - place:
            raise UserError(
                f"{path} is truncated: a part claims {size} bytes, but only {len(data) - place} are there; "
                "get the file again."
            )
        # The first chunk of each kind counts.
        found.setdefault(kind, data[place : place + size])
        place += size
    if _JSON not in found or len(found[_JSON]) > _LONGEST_JSON:
        raise UserError(f"{path} has no description or a huge one; it is damaged, get the file again.")
    return JsonReader.parse(path, found[_JSON]), found.get(_BINARY, b"")


def _shown(
    path: Path, content: JsonReader, accessors: list[JsonReader], length: int
) -> Iterator[tuple[JsonReader, np.ndarray]]:
    """Yield the splat primitives that the scene shows, each with the matrix (4, 4) that transforms it."""
    nodes, meshes = content.objects("nodes"), content.objects("meshes")
    scenes = content.objects("scenes")
    if scenes:
        first = scenes[content.index("scene", len(scenes), default=0)].indices("nodes", len(nodes))
    else:
        children = {child for node in nodes for child in node.indices("children", len(nodes))}
        first = [number for number in range(len(nodes)) if number not in children]
    left = collections.deque((node, np.eye(4), 0) for node in first)
    visited: set[int] = set()
    count, parts = 0, 0
    while left:
        number, outer, depth = left.popleft()
        if number in visited:
            raise UserError(f"{path}: its node {number} is in two places; it is damaged, export it again.")
        if depth > _DEEPEST:
            raise UserError(f"{path}: its nodes are nested more than {_DEEPEST} deep; export it again.")
        visited.add(number)
        node = nodes[number]
        matrix = outer @ _matrix(node)
        left += [(child, matrix, depth + 1) for child in node.indices("children", len(nodes))]
        if "mesh" not in node.content:
            continue
        for primitive in meshes[node.index("mesh", len(meshes))].objects("primitives"):
            extensions = primitive.content.get("extensions")
            if not isinstance(extensions, dict) or _EXTENSION not in extensions:
                continue
            told = extensions[_EXTENSION]
            space = told.get("colorSpace", _COLOR_SPACE) if isinstance(told, dict) else _COLOR_SPACE
            if space != _COLOR_SPACE:
                raise UserError(
                    f"{path} has the color space {shown(space)}, which is blended differently; export it as "
                    f"{_COLOR_SPACE}."
                )
            place = primitive.child("attributes").index("POSITION", len(accessors))
            count += accessors[place].integer("count", 0, length)
            parts += 1
            if parts > _MOST_PARTS or count * _LEAST_BYTES > length:
                raise UserError(
                    f"{path} shows {count} splats in {parts} parts, more than fit into its {length} bytes; "
                    "it is damaged or repeats a mesh many times, export it as one."
                )
            yield primitive, matrix


def _matrix(node: JsonReader) -> np.ndarray:
    """Return a node's matrix (4, 4)."""
    if "matrix" in node.content:
        return node.numbers("matrix", 16).reshape(4, 4).T
    x, y, z, w = node.numbers("rotation", 4, default=(0.0, 0.0, 0.0, 1.0))
    turn = np.array([w, x, y, z]) / max(np.linalg.norm([w, x, y, z]), 1e-12)
    matrix = np.eye(4)
    matrix[:3, :3] = turn_matrix(tuple(turn.tolist())) * node.numbers("scale", 3, default=(1.0, 1.0, 1.0))
    matrix[:3, 3] = node.numbers("translation", 3, default=(0.0, 0.0, 0.0))
    return matrix


def _splats(path: Path, numbers: "_Numbers", primitive: JsonReader) -> SplatArrays:
    """Read the splats of a primitive."""
    attributes = primitive.child("attributes")

    def read(name: str, width: int) -> np.ndarray:
        return numbers.read(attributes, name, width)

    positions = read("POSITION", 3)
    count = len(positions)
    degree = 0
    while degree < MAX_SH_DEGREE and f"{_EXTENSION}:SH_DEGREE_{degree + 1}_COEF_0" in attributes.content:
        degree += 1
    parts = {
        "ROTATION": read(f"{_EXTENSION}:ROTATION", 4),
        "SCALE": read(f"{_EXTENSION}:SCALE", 3),
        "OPACITY": read(f"{_EXTENSION}:OPACITY", 1),
    }
    coefficients = [read(name, 3) for name in _coefficient_names((degree + 1) ** 2)]
    for name, values in (*parts.items(), *(("SH", values) for values in coefficients)):
        if len(values) != count:
            raise UserError(
                f"{path} has {count} positions but {len(values)} of {name}; it is damaged, export it again."
            )
    with np.errstate(invalid="ignore"):
        log_scales = np.log(np.maximum(parts["SCALE"].astype(np.float64), MIN_SCALE))
    return SplatArrays(
        positions=positions,
        log_scales=log_scales.astype(np.float32),
        quaternions=parts["ROTATION"][:, [3, 0, 1, 2]],
        opacity_logits=logits_of(parts["OPACITY"][:, 0].astype(np.float64)),
        sh=np.stack(coefficients, axis=1),
    )


@dataclasses.dataclass(frozen=True)
class _Numbers:
    """A file's numeric data and the lists that locate it, under glTF's own names."""

    path: Path
    data: bytes
    accessors: list[JsonReader]
    views: list[JsonReader]
    buffers: list[JsonReader]

    def read(self, attributes: JsonReader, name: str, width: int) -> np.ndarray:
        """Read an attribute as numbers (N, width) float32."""
        accessor = self.accessors[attributes.index(name, len(self.accessors))]
        component = accessor.integer("componentType", 0, 2**16)
        kind = accessor.content.get("type")
        if component not in _COMPONENTS or _WIDTHS.get(str(kind)) != width:
            raise UserError(
                f"{self.path}: its {name} is {str(kind)[:20]!r} of component type {component}, not {width} "
                "numbers; it is damaged or of another extension, export it again."
            )
        if "sparse" in accessor.content or "bufferView" not in accessor.content:
            raise UserError(
                f"{self.path}: its {name} is sparse, which is not supported; export it again without."
            )
        view = self.views[accessor.index("bufferView", len(self.views))]
        buffer = self.buffers[view.index("buffer", len(self.buffers))]
        if "uri" in buffer.content or view.content.get("extensions"):
            raise UserError(
                f"{self.path}: its {name} is in another file or compressed, which is not supported; "
                "export it as one uncompressed .glb."
            )
        kind_name, full = _COMPONENTS[component]
        item = np.dtype((kind_name, (width,)))
        size = len(self.data)
        start = view.integer("byteOffset", 0, size, default=0)
        stop = start + view.integer("byteLength", 0, size)
        start += accessor.integer("byteOffset", 0, size, default=0)
        stride = view.integer("byteStride", item.itemsize, size, default=item.itemsize)
        count = accessor.integer("count", 1, max(1, size))
        if start + (count - 1) * stride + item.itemsize > min(stop, size):
            raise UserError(
                f"{self.path}: its {name} claims {count} records, which are more than there are; "
                "it is damaged or truncated, get the file again."
            )
        single = np.dtype(kind_name)
        strides = (stride, single.itemsize)
        values = np.ndarray((count, width), single, self.data, start, strides).astype(np.float32)
        if full is None or accessor.content.get("normalized") is not True:
            return values
        return np.maximum(values / np.float32(full), np.float32(-1.0))


def _moved(path: Path, arrays: SplatArrays, matrix: np.ndarray) -> SplatArrays:
    """Transform splats by a node's matrix (4, 4)."""
    if np.array_equal(matrix, np.eye(4)):
        return arrays
    linear = matrix[:3, :3]
    with np.errstate(all="ignore"):
        size = float(np.cbrt(np.linalg.det(linear)))
        turn = linear / size
        is_turn = np.isfinite(matrix).all() and size > 0
        is_turn = is_turn and bool(np.abs(turn @ turn.T - np.eye(3)).max() < _SKEW)
    if not is_turn:
        raise UserError(
            f"{path} has a node that stretches or mirrors its splats, which is not supported; "
            "apply its scale and export it again."
        )
    x, y, z, w = Rotation.from_matrix(turn).as_quat().tolist()
    moved = scaled(turned(arrays, (w, x, y, z)), size)
    with np.errstate(over="ignore"):
        return dataclasses.replace(moved, positions=(moved.positions + matrix[:3, 3]).astype(np.float32))
