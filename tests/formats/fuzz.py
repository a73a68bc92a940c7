"""Fuzzing of splat file readers: each damaged file must give a UserError, without hangs or high memory use.

    python -m tests.formats.fuzz --count=12000
    python -m tests.formats.fuzz --count=12000 --only=.glb

Every file starts as a valid one of some format and degree and is then damaged: bytes are flipped, cut,
repeated or spliced in from another file, numbers and words of the header are replaced, or a compressed stream
is decompressed, changed and compressed again. It takes a few minutes; the tests run a few hundred files.
"""

import argparse
import dataclasses
import gzip
import io
import re
import struct
import sys
import tempfile
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply import save_ply
from ge3d_jax.formats.splats import load_splats, save_splats
from tests.formats.ksplat_files import ksplat
from tests.formats.splat_files import random_gaussians

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ENDINGS = (".ply", ".splat", ".spz", ".ksplat", ".glb", ".sog")
# Numbers that readers may trip over.
NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"2147483648",
    b"4294967295",
    b"1000000000000",
    b"9" * 30,
    b"1e9",
    b"nan",
    b"inf",
)
WORDS = (
    b"list uchar int",
    b"double",
    b"uchar",
    b"float",
    b"property",
    b"element face",
    b"comment",
    b"\n",
    b" ",
)
# JSON values that readers may trip over.
VALUES = (b'"a"', b'"../a"', b'""', b"[]", b"{}", b"[1,2,3]", b"null", b"true", b"1.5", b"1e400", b"[" * 2000)
# Memory that a reader may use for an empty file, and per byte of a file: streams may decompress to 32 times
# their length (spz.py), and 20 packed bytes become a splat of 60 bytes, with float64 in between.
FREE_BYTES = 2**25
BYTES_FOR_EACH = 512
# CPU time, far more than any file takes; a reader that trusts a false count takes minutes.
SLOWEST_SECONDS = 2.0


@dataclasses.dataclass
class Outcome:
    """Results of a run: files tried, number of readable ones, maximum CPU time and memory."""

    files: int = 0
    read: int = 0
    slowest_seconds: float = 0.0
    most_bytes: int = 0


def seeds(folder: Path) -> list[tuple[str, bytes]]:
    """Valid files to start from, as pairs of suffix and content."""
    found = []
    for degree in range(4):
        gaussians = random_gaussians(6, degree)
        for ending in (".ply", ".splat", ".compressed.ply", ".glb", ".sog", ".spz"):
            save_splats(folder / f"good{ending}", gaussians)
            found.append((ending, (folder / f"good{ending}").read_bytes()))
        payload = gzip.decompress(found[-1][1])
        found.append((".spz", version_4(payload)))
        found.append((".spz", payload))
        save_ply(folder / "good.ply", gaussians, ascii=True)
        found.append((".ply", (folder / "good.ply").read_bytes()))
        found.append((".ply", other_writer(folder / "good.ply", degree)))
        found.append((".ply", compressed(degree)))
        found.append((".ksplat", ksplat(gaussians, degree % 3, (degree, 0))))
    found += 3 * [(".glb", nested_glb(data)) for ending, data in found if ending == ".glb"]
    # The pictures of an unpacked .sog are next to its description.
    with zipfile.ZipFile(io.BytesIO(next(data for ending, data in found if ending == ".sog"))) as archive:
        archive.extractall(folder)
        found += 3 * [("meta.json", archive.read("meta.json"))]
    half = struct.pack("<4sIIBBBB", b"NGSP", 1, 6, 0, 12, 1, 0) + bytes(range(6 * 16))
    return [*found, (".spz", half), (".spz", gzip.compress(half, mtime=0))]


def other_writer(path: Path, kind: int) -> bytes:
    """An ASCII file in other programs' style: renamed, flat, filtered, with rows that cannot be drawn."""
    head, end, body = path.read_bytes().partition(b"end_header\n")
    if kind == 0:
        head = head.replace(b"float ", b"float scalar_").replace(b"scalar_x", b"x")
    elif kind == 1:
        head = head.replace(b"float scale_2", b"float unused")
    elif kind == 2:
        head = head.replace(b"float nx", b"float filter_3D").replace(b"\n", b"\r")
        end, body = end.replace(b"\n", b"\r"), body.replace(b"\n", b"\r")
    else:
        head = head.replace(b"f_dc_0", b"red").replace(b"f_dc_1", b"green").replace(b"f_dc_2", b"blue")
        body = body.replace(b"0", b"nan", 1)
    return head + end + body


def compressed(degree: int) -> bytes:
    """A compressed .ply of six splats."""
    names = [f"{end}_{kind}{axis}" for kind in ("", "scale_") for end in ("min", "max") for axis in "xyz"]
    names += [f"{end}_{axis}" for end in ("min", "max") for axis in "rgb"] if degree else []
    head = [
        "ply",
        "format binary_little_endian 1.0",
        "element chunk 1",
        *(f"property float {n}" for n in names),
    ]
    head += ["element vertex 6"]
    head += [f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")]
    rest = 3 * ((degree + 1) ** 2 - 1)
    head += ["element sh 6", *(f"property uchar f_rest_{index}" for index in range(rest))] if rest else []
    chunk = np.arange(len(names), dtype="<f4").tobytes()
    return "\n".join([*head, "end_header", ""]).encode() + chunk + bytes(range(96)) + bytes(6 * rest)


def nested_glb(data: bytes) -> bytes:
    """The .glb with its mesh transformed by nested nodes."""
    (size,) = struct.unpack_from("<I", data, 12)
    nodes = b'{"matrix":[0,0,2,0,0,2,0,0,-2,0,0,0,1,2,3,1],"children":[1]},'
    nodes += b'{"rotation":[0,0.6,0,0.8],"translation":[1,0,0],"scale":[2,2,2],"mesh":0}'
    text = data[20 : 20 + size].strip().replace(b'{"mesh":0}', nodes)
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, len(data) + len(text) - size, len(text), 0x4E4F534A)
    return head + text + data[20 + size :]


def version_4(payload: bytes) -> bytes:
    """Convert a decompressed file of version 3 to a file of version 4."""
    count, degree, bits = *struct.unpack_from("<IB", payload, 8), payload[13]
    sizes = [9 * count, count, 3 * count, 3 * count, 4 * count, 3 * ((degree + 1) ** 2 - 1) * count]
    streams, place = [], 16
    for size in filter(None, sizes):
        streams.append((zstd.compress(payload[place : place + size]), size))
        place += size
    head = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, count, degree, bits, 0, len(streams), 32)
    table = b"".join(struct.pack("<QQ", len(stream), size) for stream, size in streams)
    return head + table + b"".join(stream for stream, _ in streams)


def flip(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Change a few bytes, anywhere or near the start."""
    changed = bytearray(data)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 64)
    for _ in range(int(rng.integers(1, 9))):
        changed[int(rng.integers(reach))] = int(rng.integers(256))
    return bytes(changed)


def cut(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Remove the beginning or the end."""
    place = int(rng.integers(len(data)))
    return data[:place] if rng.random() < 0.8 else data[place:]


def double(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Repeat a section up to a thousand times."""
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 100))
    stretch = data[start : start + length]
    return data[:start] + stretch * int(rng.choice([2, 3, 1000])) + data[start + length :]


def splice(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Join the start of one file and the end of another."""
    return data[: int(rng.integers(len(data)))] + other[int(rng.integers(len(other))) :]


def edit_words(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Replace, remove or add words of a text header."""
    words = data.split(b" ")
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(min(len(words), 80)))
        _, newline, rest = words[place].partition(b"\n")
        choices = NUMBERS if rng.random() < 0.5 else WORDS
        words[place] = choices[int(rng.integers(len(choices)))] + newline + rest
    return b" ".join(words)


def edit_numbers(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Replace a binary number by one that readers may trip over."""
    place = int(rng.integers(min(len(data), 160)))
    new = struct.pack("<Q", int(rng.choice([0, 1, 2**31, 2**32 - 1, 2**40, 2**63])))
    floats = struct.pack("<f", float(rng.choice([np.nan, np.inf, -1.0, 3e38, 1e-45])))
    new = floats if rng.random() < 0.3 else new[: int(rng.choice([1, 2, 4, 8]))]
    return data[:place] + new + data[place + len(new) :]


def edit_json(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Replace numbers, strings or brackets of JSON."""
    places = list(re.finditer(rb"-?[0-9.]+(?:e-?[0-9]+)?|\"[^\"]{0,60}\"|\[[^\[\]{}]*\]|true", data[: 2**16]))
    for _ in range(int(rng.integers(1, 3))):
        if not places:
            break
        place = places[int(rng.integers(len(places)))]
        # Most changes leave parseable JSON, so that later checks are reached.
        choices = (b"0", b"1", b"2", b"5", b"-0.5", b"5121", place[0] + b"0", places[0][0], places[-1][0])
        choices = choices if rng.random() < 0.6 else (*NUMBERS, *VALUES, b"-" + place[0])
        data = data[: place.start()] + choices[int(rng.integers(len(choices)))] + data[place.end() :]
    return data


def edit_archive(rng: np.random.Generator, data: bytes) -> bytes:
    """Repack a zip archive with a damaged or missing file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = list(files)[int(rng.integers(len(files)))] if rng.random() < 0.6 else "meta.json"
    if rng.random() < 0.05:
        del files[name]
    elif rng.random() < 0.03:
        files[name] = bytes(2**24)
    elif name == "meta.json" and rng.random() < 0.8:
        files[name] = edit_json(rng, files[name], files[name])
    elif rng.random() < 0.5:
        # The picture size, in the bytes after the file signature.
        place = 21 + int(rng.integers(4))
        files[name] = files[name][:place] + rng.bytes(1) + files[name][place + 1 :]
    else:
        other = files[list(files)[int(rng.integers(len(files)))]]
        files[name] = MUTATIONS[int(rng.integers(len(MUTATIONS)))](rng, files[name], other)
    kind = zipfile.ZIP_DEFLATED if rng.random() < 0.5 else zipfile.ZIP_STORED
    with zipfile.ZipFile(packed, "w", kind) as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return packed.getvalue()


MUTATIONS = (flip, cut, double, splice, edit_words, edit_numbers)


def mutate(rng: np.random.Generator, good: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Make a damaged file; returns its suffix and content."""
    ending, data = good[int(rng.integers(len(good)))]
    _, other = good[int(rng.integers(len(good)))]
    if ending == ".sog" and rng.random() < 0.8:
        return ending, edit_archive(rng, data)
    if ending in (".glb", "meta.json") and rng.random() < 0.7:
        return ending, edit_json(rng, data, other)
    inside = data.startswith(b"\x1f\x8b") and rng.random() < 0.7
    if inside:
        data = gzip.decompress(data)
    for _ in range(int(rng.integers(1, 3))):
        data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](rng, data, other) or b"\x00"
    if inside:
        data = gzip.compress(data, int(rng.choice([1, 9])), mtime=0)
    if rng.random() < 0.02:
        ending = ENDINGS[int(rng.integers(len(ENDINGS)))]
    return ending, data


def fuzz(count: int, folder: Path, seed: int = 0, only: str = "") -> Outcome:
    """Read `count` damaged files; raises AssertionError at the first wrong result, and keeps that file."""
    rng = np.random.default_rng(seed)
    good = [(ending, data) for ending, data in seeds(folder) if ending.endswith(only)]
    outcome = Outcome()
    load_splats(folder / "good.ply")
    tracemalloc.start()
    try:
        for number in range(count):
            ending, data = mutate(rng, good)
            path = folder / f"damaged-{number}-{ending}"
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.process_time()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    load_splats(path)
                outcome.read += 1
            except UserError as error:
                assert path.name in str(error) and "\n" not in str(error), f"{path}: {error}"
            except BaseException as error:
                raise AssertionError(f"{path}: {error!r}") from error
            seconds, taken = time.process_time() - start, tracemalloc.get_traced_memory()[1] - before
            assert taken <= FREE_BYTES + BYTES_FOR_EACH * len(data), f"{path}: {taken} bytes"
            assert seconds <= SLOWEST_SECONDS, f"{path}: {seconds} s"
            outcome.files += 1
            outcome.slowest_seconds = max(outcome.slowest_seconds, seconds)
            outcome.most_bytes = max(outcome.most_bytes, taken)
            path.unlink()
    finally:
        tracemalloc.stop()
    return outcome


def main() -> None:
    """Run with an address space too small for files with false counts, and print the results."""
    import resource

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the end of the names of files to damage, e.g. .glb")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    fuzz(1, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, resource.RLIM_INFINITY))
    start = time.monotonic()
    outcome = fuzz(arguments.count, folder, arguments.seed, arguments.only)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{outcome}, {time.monotonic() - start:.0f} s, resident memory grew by {grown:.1f} MiB")


if __name__ == "__main__":
    main()
