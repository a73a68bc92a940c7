"""Reading untrusted JSON: every value is requested with its type and bounds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError

_LARGEST = 1e30


@dataclass(frozen=True)
class JsonReader:
    """An object within a JSON text.

    Attributes:
        path: path of the file, for messages.
        place: location of the object in the text, for messages; "" for the outermost.
        content: the object.
    """

    path: Path
    place: str
    content: dict[str, Any]

    @classmethod
    def parse(cls, path: Path, text: bytes) -> "JsonReader":
        """Parse a text and return its outermost object.

        Raises:
            UserError: it is not JSON or not an object.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: its description is not JSON; it is damaged, get the file again."
            ) from error
        if not isinstance(content, dict):
            raise UserError(f"{path}: its description is not an object; it is damaged, get the file again.")
        return cls(path, "", content)

    def _wrong(self, name: str, wanted: str) -> UserError:
        place = f"{self.place}.{name}" if self.place else name
        return UserError(f"{self.path}: {place[:80]!r} is not {wanted}; it is damaged, export it again.")

    def integer(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """Read an integer within bounds."""
        value = self.content.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(name, f"a whole number from {least} to {most}")
        return value

    def index(self, name: str, count: int, default: int | None = None) -> int:
        """Read an index into `count` items."""
        return self.integer(name, 0, count - 1, default)

    def indices(self, name: str, count: int) -> list[int]:
        """Read a list of such indices, empty if it is missing."""
        values = self.content.get(name, [])
        if not isinstance(values, list) or not all(type(v) is int and 0 <= v < count for v in values):
            raise self._wrong(name, f"a list of whole numbers below {count}")
        return values

    def numbers(self, name: str, count: int | None, default: tuple[float, ...] | None = None) -> np.ndarray:
        """Read a list of finite numbers, `count` of them or any number: float64."""
        values = self.content.get(name, default)
        if (
            not isinstance(values, (list, tuple))
            or (count is not None and len(values) != count)
            or not all(type(value) in (int, float) and -_LARGEST < value < _LARGEST for value in values)
        ):
            many = "" if count is None else f"{count} "
            raise self._wrong(name, f"a list of {many}finite numbers")
        return np.array([float(value) for value in values], np.float64)

    def texts(self, name: str, count: int) -> list[str]:
        """Read a list of at least `count` texts."""
        values = self.content.get(name)
        if not isinstance(values, list) or len(values) < count or not all(isinstance(v, str) for v in values):
            raise self._wrong(name, f"a list of {count} texts")
        return values

    def child(self, name: str) -> "JsonReader":
        """Return an object within this one."""
        value = self.content.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return JsonReader(self.path, f"{self.place}.{name}" if self.place else name, value)

    def objects(self, name: str) -> "list[JsonReader]":
        """Return a list of objects within this one, empty if it is missing."""
        values = self.content.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self._wrong(name, "a list of objects")
        return [JsonReader(self.path, f"{name}[{number}]", value) for number, value in enumerate(values)]
