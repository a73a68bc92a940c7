"""Damage to valid files: JSON values of another type, size or sign; bytes flipped, cut or spliced."""

import contextlib
import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.formats.fuzz import cut, double, edit_numbers, flip, splice

Random = np.random.Generator

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 64, 0.5, -0.5, 1e30, 10**30, -(10**30), 2**31, 2**63, 10**400),
    *(float("inf"), -float("inf"), float("nan"), 1e-300, 1e300, 1.0000001, 2.0),
    *("", "x", "1", "nan", "\0", "\ud800", "a" * 3000, "../x", "/etc/passwd", "C:\\x.png", "a\nb", "%00"),
    *([], {}, [[]], [1], [None], ["x"], {"a": 1}, [1, 2], [0] * 3000, [[1, 2], [3]], {"": {}}),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _parent(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        content = content[key]
    return content


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def damage_json(rng: Random, content: Any, keys: tuple[str, ...]) -> bytes:
    """Change one to three values of the JSON `content`; `keys` are names to add."""
    content = copy.deepcopy(content)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(content))
        if not places:
            break
        path = places[int(rng.integers(len(places)))]
        parent, kind = _parent(content, path), rng.random()
        nasty = (
            NASTY[int(rng.integers(len(NASTY)))] if rng.random() < 0.97 else _nested(int(rng.integers(100)))
        )
        if kind < 0.6:
            parent[path[-1]] = copy.deepcopy(nasty)
        elif kind < 0.7:
            del parent[path[-1]]
        elif kind < 0.8 and isinstance(parent, dict) and keys:
            parent[keys[int(rng.integers(len(keys)))]] = copy.deepcopy(nasty)
        elif kind < 0.9:
            other = places[int(rng.integers(len(places)))]
            try:
                parent[path[-1]] = copy.deepcopy(_parent(content, other)[other[-1]])
            except (KeyError, IndexError, TypeError):
                continue
        elif isinstance(parent, list):
            parent[path[-1] : path[-1]] = [copy.deepcopy(parent[path[-1]])] * int(rng.integers(1, 30))
        elif isinstance(parent[path[-1]], float) or type(parent[path[-1]]) is int:
            factors = (-1, 0, 2, 0.1, 10**3, 10**9)
            with contextlib.suppress(OverflowError):
                parent[path[-1]] = parent[path[-1]] * factors[int(rng.integers(len(factors)))]
    text = json.dumps(content)
    if rng.random() < 0.01:
        text = text.replace(": ", ": " + "[" * 10**5, 1)
    encoding = rng.choice(["utf-8"] * 20 + ["utf-16", "utf-8-sig", "utf-32"])
    return text.encode(str(encoding))


def damage_bytes(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change, cut, repeat or swap bytes."""
    ways = (flip, flip, cut, double, splice, edit_numbers)
    for _ in range(int(rng.integers(1, 3))):
        data = ways[int(rng.integers(len(ways)))](rng, data, other) or b"\0"
    return data


def damage_tensors(rng: Random, data: bytes, names: tuple[str, ...]) -> bytes:
    """Change the header's JSON or the bytes of a safetensors file."""
    if rng.random() < 0.4:
        return damage_bytes(rng, data, data)
    length = int.from_bytes(data[:8], "little")
    header = damage_json(rng, json.loads(data[8 : 8 + length]), (*names, "dtype", "shape", "data_offsets"))
    rest = data[8 + length :]
    if rng.random() < 0.2:
        rest = bytes(rng.integers(0, 256, len(rest), dtype=np.uint8))
    return len(header).to_bytes(8, "little") + header + rest
