"""SuperSplat's compressed .ply: 16 bytes per splat, in chunks of 256 that share their bounds.

The element `chunk` holds bounds as floats: `min_x … max_z`, `min_scale_x … max_scale_z` (logarithms) and, in
newer files, `min_r … max_b` (colors, about [0, 1]). The element `vertex` holds four 32-bit words:

    packed_position   x, y, z in 11, 10, 11 bits, the first one highest, as fractions of the chunk's bounds
    packed_scale      the scales, likewise
    packed_rotation   the index of the largest of w, x, y, z in 2 bits, then the other three in order,
                      10 bits each, as 0.5 + q/√2
    packed_color      red, green, blue, opacity, 8 bits each; colors within the bounds, or else in [0, 1]

The optional element `sh` holds bytes `f_rest_*` in the order of the standard layout, in steps of 1/32 from −4
to 4.

Splats are written along a space-filling curve, so that those of a chunk are close together.
"""

import os
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.formats import smallest_three
from ge3d_jax.formats.ply_columns import ANTIALIASED_COMMENT, rest_names
from ge3d_jax.formats.ply_header import Element, Header
from ge3d_jax.formats.splat_arrays import (
    SplatArrays,
    check_holds_splats,
    live_finite_arrays,
    morton_order,
    normalized,
    opacities,
    opacity_logits,
)
from ge3d_jax.splatting.gaussians import SH_C0, Gaussians

PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_CHUNK = 256
_PLACE_BOUNDS = ("min_x", "min_y", "min_z", "max_x", "max_y", "max_z")
_SCALE_BOUNDS = ("min_scale_x", "min_scale_y", "min_scale_z", "max_scale_x", "max_scale_y", "max_scale_z")
_COLOR_BOUNDS = ("min_r", "min_g", "min_b", "max_r", "max_g", "max_b")
_PLACE_BITS = (11, 10, 11)
_COLOR_BITS = (8, 8, 8, 8)
# Degrees 1 to 3.
_REST_COUNTS = (0, 9, 24, 45)


def is_compressed(element: Element) -> bool:
    """Whether the element that holds the splats is packed."""
    return PACKED[0] in element.types


def _fields(path: Path, element: Element, names: tuple[str, ...], kind: str) -> None:
    """Check that an element has fields of a given type."""
    for name in names:
        found = element.types.get(name)
        if found is None or found[-2:] != kind:
            raise UserError(
                f"{path} is a compressed .ply whose element {element.name!r} has no property {name!r} of the "
                "type that it should have; export it again, or uncompressed."
            )


def compressed_elements(path: Path, header: Header) -> list[Element]:
    """Return the elements to read from a compressed file: chunks, splats, and, if present, coefficients.

    Args:
        path: path of the file, for messages.
        header: its header.

    Returns:
        Two or three elements, in the order of the file.

    Raises:
        UserError: an element or a property is missing, or their counts do not match.
    """
    found = {element.name: element for element in header.elements}
    splats, chunks, rest = found["vertex"], found.get("chunk"), found.get("sh")
    if header.ascii or chunks is None:
        raise UserError(
            f"{path} is a compressed .ply of packed properties without its element 'chunk', or as text; "
            "export it again, or uncompressed."
        )
    _fields(path, splats, PACKED, "u4")
    _fields(path, chunks, (*_PLACE_BOUNDS, *_SCALE_BOUNDS), "f4")
    if any(name in chunks.types for name in _COLOR_BOUNDS):
        _fields(path, chunks, _COLOR_BOUNDS, "f4")
    check_holds_splats(path, splats.count)
    if chunks.count != -(-splats.count // _CHUNK) or (rest is not None and rest.count != splats.count):
        raise UserError(
            f"{path} is a compressed .ply whose counts of chunks or coefficients do not fit "
            f"{splats.count} splats; export it again, or uncompressed."
        )
    if rest is not None:
        if len(rest.types) not in _REST_COUNTS:
            raise UserError(
                f"{path} is a compressed .ply with {len(rest.types)} coefficients in its element 'sh'; "
                "spherical harmonics of degree 1 to 3 have 9, 24 or 45, so export it again."
            )
        _fields(path, rest, rest_names(len(rest.types)), "u1")
    return [element for element in header.elements if element.name in ("vertex", "chunk", "sh")]


def _unpack(words: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """Unpack 32-bit words into fractions (N, len(bits)), the first one highest."""
    shifts = np.cumsum((0, *bits[:0:-1]))[::-1]
    parts = [
        (words >> np.uint32(shift) & np.uint32(2**count - 1)) / (2**count - 1)
        for shift, count in zip(shifts, bits, strict=True)
    ]
    return np.stack(parts, axis=1)


def _between(fractions: np.ndarray, chunks: np.ndarray, bounds: tuple[str, ...]) -> np.ndarray:
    """Interpolate fractions between the bounds of their chunks: values (N, 3)."""
    table = np.stack([chunks[name].astype(np.float64) for name in bounds], axis=1)
    table = np.repeat(table, _CHUNK, axis=0)[: len(fractions)]
    # Bounds may be anything; values that are not finite are left out later.
    with np.errstate(all="ignore"):
        return table[:, :3] * (1.0 - fractions) + table[:, 3:] * fractions


def _quaternions(words: np.ndarray) -> np.ndarray:
    """Unpack rotations into quaternions (N, 4) wxyz."""
    rest = (_unpack(words & np.uint32(2**30 - 1), (2, 10, 10, 10))[:, 1:] - 0.5) * np.sqrt(2.0)
    return smallest_three.join(words >> np.uint32(30), rest)


def unpack_splats(path: Path, tables: dict[str, np.ndarray]) -> SplatArrays:
    """Unpack the splats of a compressed file.

    Args:
        path: path of the file, for messages.
        tables: the records of the elements from `compressed_elements`, by name.

    Returns:
        The splats, including those that cannot be drawn.
    """
    splats, chunks = tables["vertex"], tables["chunk"]
    count = len(splats)
    place, size = (_unpack(splats[name], _PLACE_BITS) for name in ("packed_position", "packed_scale"))
    color = _unpack(splats["packed_color"], _COLOR_BITS)
    tint = color[:, :3]
    if _COLOR_BOUNDS[0] in (chunks.dtype.names or ()):
        tint = _between(tint, chunks, _COLOR_BOUNDS)
    rest = np.zeros((count, 0))
    if "sh" in tables:
        names = rest_names(len(tables["sh"].dtype.names or ()))
        levels = np.stack([tables["sh"][name] for name in names], axis=1) if names else rest
        # The outermost levels are the ends of the range; the others are the centers of their steps.
        rest = 8.0 * (np.where(levels == 0, 0.0, np.where(levels == 255, 256.0, levels + 0.5)) / 256.0 - 0.5)
    with np.errstate(over="ignore"):
        return SplatArrays(
            positions=_between(place, chunks, _PLACE_BOUNDS).astype(np.float32),
            log_scales=_between(size, chunks, _SCALE_BOUNDS).astype(np.float32),
            quaternions=_quaternions(splats["packed_rotation"]).astype(np.float32),
            opacity_logits=opacity_logits(color[:, 3] * 255.0),
            sh=np.concatenate(
                [(tint[:, None] - 0.5) / SH_C0, rest.reshape(count, 3, -1).transpose(0, 2, 1)],
                axis=1,
                dtype=np.float32,
            ),
        )


def save_compressed_ply(
    path: str | os.PathLike[str], gaussians: Gaussians, *, antialiased: bool = False
) -> np.ndarray:
    """Write the splats in use (`mask`) in the compressed layout; the same splats give the same bytes.

    Args:
        path: file to write.
        gaussians: the splats; coordinates are written as they are, coefficients beyond ±4 are clipped.
        antialiased: whether to say in a comment that the splats were trained with antialiasing.

    Returns:
        (N,), for each position in the file, the index of its splat.

    Raises:
        UserError: a splat is not finite.
    """
    arrays = live_finite_arrays(Path(path), gaussians)
    order = morton_order(arrays.positions)
    count = len(order)
    place, place_bounds = _fractions(arrays.positions[order])
    size, size_bounds = _fractions(arrays.log_scales[order])
    tint, tint_bounds = _fractions(0.5 + SH_C0 * arrays.sh[order, 0].astype(np.float64))
    color = np.concatenate([tint, opacities(arrays.opacity_logits[order])[:, None]], axis=1)
    words = np.stack(
        [
            _pack(place, _PLACE_BITS),
            _pack_quaternions(normalized(arrays.quaternions[order])),
            _pack(size, _PLACE_BITS),
            _pack(color, _COLOR_BITS),
        ],
        axis=1,
    )
    rest = arrays.sh[order, 1:].transpose(0, 2, 1).reshape(count, -1)
    bounds = (*_PLACE_BOUNDS, *_SCALE_BOUNDS, *_COLOR_BOUNDS)
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment {ANTIALIASED_COMMENT}"] if antialiased else []
    header += [f"element chunk {len(place_bounds)}", *(f"property float {name}" for name in bounds)]
    header += [f"element vertex {count}", *(f"property uint {name}" for name in PACKED)]
    if rest.shape[1]:
        header += [f"element sh {count}", *(f"property uchar {name}" for name in rest_names(rest.shape[1]))]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*header, "end_header", ""]).encode())
        file.write(np.concatenate([place_bounds, size_bounds, tint_bounds], axis=1).astype("<f4").tobytes())
        file.write(words.astype("<u4").tobytes())
        # The inverse of `unpack_splats`: each step of 1/32 stands for its center.
        file.write(np.clip(np.floor((rest / 8.0 + 0.5) * 256.0), 0, 255).astype(np.uint8).tobytes())
    return order


def _fractions(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert values (N, 3) to fractions of their chunks' bounds; also return the bounds (C, 6) float32."""
    if not len(values):
        return np.zeros((0, 3)), np.zeros((0, 6), np.float32)
    starts = np.arange(0, len(values), _CHUNK)
    low = np.minimum.reduceat(values, starts).astype(np.float32)
    high = np.maximum.reduceat(values, starts).astype(np.float32)
    each = np.arange(len(values)) // _CHUNK
    extent = np.maximum(high.astype(np.float64) - low, 1e-30)[each]
    fractions = np.clip((values - low.astype(np.float64)[each]) / extent, 0.0, 1.0)
    return fractions, np.concatenate([low, high], axis=1)


def _pack(fractions: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_unpack`."""
    words = np.zeros(len(fractions), np.uint32)
    for column, count in enumerate(bits):
        levels = np.rint(fractions[:, column] * (2**count - 1)).astype(np.uint32)
        words = words << np.uint32(count) | levels
    return words


def _pack_quaternions(quaternions: np.ndarray) -> np.ndarray:
    """The inverse of `_quaternions`, for unit quaternions (N, 4)."""
    largest, others = smallest_three.split(quaternions)
    rest = _pack(0.5 + np.sqrt(0.5) * others, (10, 10, 10))
    return largest.astype(np.uint32) << np.uint32(30) | rest
