"""The output folder of a run: its name, config.json, and metrics.jsonl."""

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path, process_mark

_LONGEST_SLUG = 60
_RECORDED_PACKAGES = ("ge3d_jax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers")


def slug(text: str) -> str:
    """Convert a prompt to a folder name: lowercase letters and digits of any script, joined by hyphens."""
    words = re.sub(r"[\W_]+", "-", text.lower()).strip("-")
    return words[:_LONGEST_SLUG].strip("-")


def named_folder(path: str | os.PathLike[str], what: str = "output folder") -> Path:
    """The folder of that name. An empty name, as of an unset variable, would mean the current folder.

    Raises:
        UserError: the name is empty; the message says what it is for.
    """
    if not os.fspath(path).strip():
        raise UserError(f"The name of the {what} is empty; give one, or leave it out.")
    return Path(path)


def prepare_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and check that files can be written to it.

    Raises:
        UserError: the name is empty, or files cannot be written; the message names the folder and the reason.
    """
    folder = named_folder(path)
    probe = folder / f".probe.{process_mark()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"The output folder {folder} cannot be written to ({reason}); choose another."
        ) from error
    return folder


def check_file_name(path: Path) -> None:
    """Check that a file to be written is not a folder. Raises UserError if it is one."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file.")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the results."""
    found = {"python": platform.python_version()}
    for name in _RECORDED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write indented JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_metrics(path: str | os.PathLike[str], lines: Sequence[Mapping[str, float | int]]) -> None:
    """Write a file with one JSON object per line."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(dict(line)) + "\n" for line in lines), encoding="utf-8")


class MetricsFile:
    """A file with one JSON object per line, flushed after each line so that a run can be monitored.

    The file is replaced when the first line is written, and left unchanged until then.
    """

    def __init__(
        self, path: str | os.PathLike[str], earlier: Sequence[Mapping[str, float | int]] = ()
    ) -> None:
        """Prepare to replace the file, starting with the `earlier` lines of a resumed run."""
        self._path = path
        self._earlier = tuple(earlier)
        self._file: TextIO | None = None

    def write(self, metrics: Mapping[str, float | int]) -> None:
        """Append one line."""
        if self._file is None:
            write_metrics(self._path, self._earlier)
            self._file = open(self._path, "a", encoding="utf-8")
        self._file.write(json.dumps(dict(metrics)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
