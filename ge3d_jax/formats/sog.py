"""PlayCanvas splat files, SOG version 2: images with one pixel per splat, and `meta.json`.

A `.sog` file is a zip archive of them; if it is unpacked, read `meta.json`. All images are lossless WebP; the
splats follow each other row by row.

    means_l, means_u   low and high bytes of x, y, z in 16 bits, between the bounds in `means`, which
                       apply to sign(v)·ln(1 + |v|)
    quats              three components, 127.5·(1 + √2·q), and 252 + the index of the largest of w, x, y, z
    scales             for each axis, the index of its logarithm in a codebook of 256
    sh0                the same for the color coefficients of degree 0, and the opacity, 255 for 1
    shN_labels         for degrees 1 to 3, the index of a palette row in 16 bits
    shN_centroids      the palette, 64 rows of it side by side: for each coefficient, a pixel of indices of
                       red, green, and blue in a codebook

Up to 65,536 splats have their own palette row each; more have to share. Version 1 had no codebooks.
"""

import contextlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.formats import smallest_three
from ge3d_jax.formats.quantization import codebook, palette
from ge3d_jax.formats.splat_arrays import (
    SplatArrays,
    SplatFile,
    check_holds_splats,
    live_finite_arrays,
    morton_order,
    normalized,
    opacity_bytes,
    opacity_logits,
    open_splat_file,
    sound_splats,
    to_gaussians,
    to_levels,
)
from ge3d_jax.formats.typed_json import JsonReader
from ge3d_jax.splatting.gaussians import MAX_SH_DEGREE, Gaussians, sh_degree_of

_VERSION = 2
_META = "meta.json"
_LONGEST_META = 2**20
_LEVELS = 256
_MOST_ROWS = 2**16
_ROWS_ACROSS = 64
_LARGEST_PLACE = 65535
_FIRST_LARGEST = 252
# WebP's maximum side.
_LARGEST_SIDE = 16383
# Images may unpack to this many times the length of the file, as a .spz may, or to what is always allowed.
_LARGEST_RATIO = 32
_ALWAYS_ALLOWED = 2**20
# Bytes per splat in all images but the palette.
_UNPACKED_BYTES = 24
# Pixels that an image may have beyond those in use: rows and columns are padded.
_SPARE_PIXELS = 2**12
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)

# Compression methods that every zip program supports.
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# Reads a file of the set by its name.
_Open = Callable[[str], bytes]


def read_sog(path: str | os.PathLike[str]) -> SplatFile:
    """Read a .sog file, or the `meta.json` of an unpacked one.

    Args:
        path: file to read.

    Returns:
        The splats that can be drawn, and whether they were trained with antialiasing.

    Raises:
        UserError: the file is missing, truncated, damaged, or of another version, or it unpacks to far more
            than its length; the message names the file and the part.

    Warns:
        UserWarning: splats were left out.
    """
    path = Path(path)
    with open_splat_file(path) as (file, length):
        check_holds_splats(path, length)
        if path.suffix.lower() == ".json":
            return _read(path, _beside(path), file.read(_LONGEST_META + 1), None)
        with _archive(path, file.read(length)) as unpack:
            return _read(path, unpack, unpack(_META), length)


@contextlib.contextmanager
def _archive(path: Path, data: bytes) -> Iterator[_Open]:
    """Yield a function that unpacks a file of an archive."""
    allowed = max(_ALWAYS_ALLOWED, _LARGEST_RATIO * len(data))
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (*_DAMAGED, OSError) as error:
        raise UserError(
            f"{path} is not a .sog file: it is not a zip archive, or a damaged one; get the file again."
        ) from error

    def unpack(name: str) -> bytes:
        try:
            entry = archive.getinfo(name)
            if entry.file_size > allowed or entry.compress_type not in _PACKINGS:
                raise zipfile.BadZipFile
            with archive.open(entry) as file:
                return file.read(allowed)
        except (*_DAMAGED, OSError) as error:
            raise UserError(
                f"{path}: its part {name[:80]!r} is missing or cannot be unpacked; it is damaged, "
                "get the file again."
            ) from error

    with archive:
        yield unpack


def _beside(path: Path) -> _Open:
    """Return a function that reads a file beside `meta.json`."""

    def read(name: str) -> bytes:
        if not name or Path(name).name != name or "\0" in name:
            raise UserError(
                f"{path}: its part {name[:80]!r} is not the name of a file beside it; export it again."
            )
        with open_splat_file(path.parent / name) as (file, length):
            return file.read(length)

    return read


def _read(path: Path, unpack: _Open, text: bytes, length: int | None) -> SplatFile:
    """Read the splats of a set of files; `length` is that of the archive in bytes, if it is one."""
    if len(text) > _LONGEST_META:
        raise UserError(f"{path}: its {_META} is huge; it is damaged, get the file again.")
    meta = JsonReader.parse(path, text)
    if meta.content.get("version") != _VERSION:
        version = "1" if "version" not in meta.content else repr(meta.content["version"])[:20]
        raise UserError(
            f"{path} is of SOG version {version}; export it as version {_VERSION}, or as a .ply file."
        )
    count = meta.integer("count", 0, _LARGEST_SIDE**2)
    check_holds_splats(path, count)
    parts = {name: meta.child(name) for name in ("means", "scales", "quats", "sh0")}
    images = {name: part.texts("files", 2 if name == "means" else 1) for name, part in parts.items()}
    if length is None:
        # The images are separate files; one of them determines how long they may be.
        length = len(unpack(images["means"][0])) * len(parts)
    if _UNPACKED_BYTES * count > max(_ALWAYS_ALLOWED, _LARGEST_RATIO * length):
        raise UserError(
            f"{path} claims {count} splats, far more than its {length} bytes can hold; it is damaged, "
            "get the file again."
        )

    def pixels(name: str, most: int = count) -> np.ndarray:
        return _pixels(path, name, unpack(name), most).reshape(-1, 4)

    def records(name: str) -> np.ndarray:
        found = pixels(name)
        if len(found) < count:
            raise UserError(
                f"{path}: its picture {name[:80]!r} has {len(found)} pixels for {count} splats; "
                "it is damaged, get the file again."
            )
        return found[:count]

    low, high = (records(name)[:, :3].astype(np.float64) for name in images["means"][:2])
    least, most = (parts["means"].numbers(name, 3) for name in ("mins", "maxs"))
    places = least + (most - least) * ((low + 256.0 * high) / _LARGEST_PLACE)
    base = records(images["sh0"][0])
    rest = np.zeros((count, 0, 3), np.float32)
    if "shN" in meta.content:
        rest = _higher_degrees(path, meta.child("shN"), count, pixels, records)
    with np.errstate(over="ignore"):
        arrays = SplatArrays(
            positions=(np.sign(places) * np.expm1(np.abs(places))).astype(np.float32),
            log_scales=_book(parts["scales"])[records(images["scales"][0])[:, :3]],
            quaternions=_quaternions(records(images["quats"][0])),
            opacity_logits=opacity_logits(base[:, 3]),
            sh=np.concatenate([_book(parts["sh0"])[base[:, None, :3]], rest], axis=1, dtype=np.float32),
        )
    antialiased = meta.content.get("antialias") is True
    return SplatFile(to_gaussians(sound_splats(path, arrays)), antialiased=antialiased)


def _book(part: JsonReader) -> np.ndarray:
    """Return a codebook (256,) float32, padded with NaN if it is shorter."""
    numbers = part.numbers("codebook", None)[:_LEVELS]
    return np.concatenate([numbers, np.full(_LEVELS - len(numbers), np.nan)]).astype(np.float32)


def _higher_degrees(
    path: Path,
    part: JsonReader,
    count: int,
    pixels: Callable[[str, int], np.ndarray],
    records: Callable[[str], np.ndarray],
) -> np.ndarray:
    """Read the coefficients (N, K, 3) beyond the first."""
    degree = part.integer("bands", 1, MAX_SH_DEGREE)
    rows = part.integer("count", 1, _MOST_ROWS)
    centroids, labels = part.texts("files", 2)[:2]
    width = (degree + 1) ** 2 - 1
    found = pixels(centroids, rows * width + _ROWS_ACROSS * width)
    if len(found) < rows * width:
        raise UserError(
            f"{path}: its palette has {len(found)} pixels for {rows} rows; it is damaged, get the file again."
        )
    # Palette rows follow each other within the rows of pixels, each of which holds 64.
    table = found[: rows * width].reshape(rows, width, 4)[:, :, :3]
    label = records(labels)[:, :2].astype(np.int64) @ [1, 256]
    if label.max() >= rows:
        raise UserError(
            f"{path}: a splat has row {label.max()} of a palette of {rows}; it is damaged, "
            "get the file again."
        )
    return _book(part)[table][label]


def _pixels(path: Path, name: str, data: bytes, most: int) -> np.ndarray:
    """Decode an image to RGBA (H, W, 4) uint8, if it has no more pixels than `most` values need."""
    size = _webp_size(data)
    if size is None or size[0] * size[1] > 2 * most + _SPARE_PIXELS:
        claims = "is not a WebP picture" if size is None else f"claims {size[0]} × {size[1]} pixels"
        raise UserError(f"{path}: its picture {name[:80]!r} {claims}; it is damaged, get the file again.")
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            if image.size != size:
                raise ValueError
            return np.asarray(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: its picture {name[:80]!r} cannot be decoded; it is damaged, get the file again."
        ) from error


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read width and height from a WebP image's header; the decoder allocates memory for them up front."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if data[12:16] == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def _quaternions(packed: np.ndarray) -> np.ndarray:
    """Decode pixels to quaternions (N, 4) wxyz; a marker that names no component means no rotation."""
    rest = (packed[:, :3] / 127.5 - 1.0) / np.sqrt(2.0)
    largest = packed[:, 3].astype(np.int64) - _FIRST_LARGEST
    return smallest_three.join(largest, rest).astype(np.float32)


def save_sog(path: str | os.PathLike[str], gaussians: Gaussians, *, antialiased: bool = False) -> np.ndarray:
    """Write the splats in use (`mask`) as one .sog file; the same splats give the same bytes.

    Args:
        path: file to write.
        gaussians: the splats; coordinates are written as they are.
        antialiased: whether the splats were trained with antialiasing, to be recorded in `meta.json`.

    Returns:
        (N,), for each position in the file, the index of its splat: they are written along a curve that keeps
        neighbors together.

    Raises:
        UserError: there are no splats, or one is not finite.
    """
    arrays = live_finite_arrays(Path(path), gaussians)
    count = len(arrays.positions)
    if count == 0:
        raise UserError(f"{path} cannot hold 0 splats; write a .ply file instead.")
    order = morton_order(arrays.positions)
    arrays = arrays.subset(order)
    across = min(-4 * (-int(np.ceil(np.sqrt(count))) // 4), _LARGEST_SIDE)
    files: dict[str, bytes] = {}

    def picture(name: str, values: np.ndarray) -> None:
        pixels = np.zeros((-(-count // across) * across, 4), np.uint8)
        pixels[:, 3] = 255
        pixels[:count, : values.shape[1]] = values
        files[name] = _webp(pixels.reshape(-1, across, 4))

    exact = arrays.positions.astype(np.float64)
    places = np.sign(exact) * np.log1p(np.abs(exact))
    least, most = places.min(axis=0), places.max(axis=0)
    # Readers do not divide by the extent, and an extent of zero stands for the minimum.
    extent = np.where(most > least, most - least, 1.0)
    steps = np.rint((places - least) / extent * _LARGEST_PLACE).astype(np.uint16)
    picture("means_l.webp", steps & 255)
    picture("means_u.webp", steps >> 8)
    picture("quats.webp", _packed(normalized(arrays.quaternions)))
    scale_book, scale_levels = codebook(arrays.log_scales, _LEVELS)
    picture("scales.webp", scale_levels)
    base_book, base_levels = codebook(arrays.sh[:, 0], _LEVELS)
    alphas = opacity_bytes(arrays.opacity_logits)[:, None]
    picture("sh0.webp", np.concatenate([base_levels, alphas], axis=1))
    meta = {
        "version": _VERSION,
        "asset": {"generator": "ge3d_jax"},
        "count": count,
        "means": {"mins": least.tolist(), "maxs": most.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": _written(scale_book), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": _written(base_book), "files": ["sh0.webp"]},
    }
    if antialiased:
        meta["antialias"] = True
    if arrays.sh.shape[1] > 1:
        rows, labels = palette(arrays.sh[:, 1:].reshape(count, -1), _MOST_ROWS)
        book, levels = codebook(rows, _LEVELS)
        filled = np.zeros((-(-len(rows) // _ROWS_ACROSS) * _ROWS_ACROSS, arrays.sh.shape[1] - 1, 4), np.uint8)
        filled[:, :, 3] = 255
        filled[: len(rows), :, :3] = levels.reshape(len(rows), -1, 3)
        files["shN_centroids.webp"] = _webp(filled.reshape(-1, _ROWS_ACROSS * filled.shape[1], 4))
        picture("shN_labels.webp", np.stack([labels & 255, labels >> 8, 0 * labels], axis=1))
        meta["shN"] = {
            "count": len(rows),
            "bands": sh_degree_of(arrays.sh.shape[1]),
            "codebook": _written(book),
            "files": ["shN_centroids.webp", "shN_labels.webp"],
        }
    files[_META] = json.dumps(meta).encode()
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            # A ZipInfo without a date has the format's first day.
            archive.writestr(zipfile.ZipInfo(name), data)
    return order


def _written(book: np.ndarray) -> list[float]:
    """Round a codebook to the digits that float32 has, which takes a third of the text."""
    return [float(f"{number:.7g}") for number in book.tolist()]


def _packed(quaternions: np.ndarray) -> np.ndarray:
    """Encode unit quaternions (N, 4) wxyz as pixels (N, 4)."""
    largest, others = smallest_three.split(quaternions)
    levels = to_levels(127.5 * (1.0 + np.sqrt(2.0) * others))
    return np.concatenate([levels, (_FIRST_LARGEST + largest).astype(np.uint8)[:, None]], axis=1)


def _webp(pixels: np.ndarray) -> bytes:
    """Encode pixels (H, W, 4) as a lossless WebP image, including those that are not opaque."""
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "WEBP", lossless=True, exact=True, quality=75, method=4)
    return packed.getvalue()
