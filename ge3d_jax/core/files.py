"""Atomic file writes, folder locks, and reading of JSON in any Unicode encoding."""

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock

from ge3d_jax.core.errors import UserError, reason

_LOCK = ".lock"
_REMOVALS, _BETWEEN_REMOVALS = 20, 0.1


def process_mark() -> str:
    """A part of the names of files that this process is writing; others, on any machine, have another."""
    return f"{platform.node()}-{os.getpid()}"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` when the block ends without an error.

    The temporary name keeps the suffix, because image and video writers choose the format by it. Parent
    folders are created. On an error the temporary file is deleted and `path` is left unchanged. The data is
    flushed to the disk before the rename, so that even a power failure leaves either the old or the new file
    intact.

    Raises:
        OSError: the file cannot be written; the error's file name is `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{process_mark()}.part{target.suffix}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, target)
        flush(target.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files, ignoring missing ones."""
    for path in paths:
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder that threads may still be writing to: try for two seconds, then leave the rest."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_BETWEEN_REMOVALS)


def unwritable(folder: Path, error: OSError) -> UserError:
    """The user-facing error for a folder that cannot be written to."""
    return UserError(
        f"The folder {folder} cannot be written to ({error.strerror or reason(error)}); make room, or choose "
        "another."
    )


def clear_leftovers(folder: Path) -> None:
    """Remove partial files that other processes left in a folder; no other process may be writing to it."""
    for leftover in folder.glob(".*.part*"):
        if f".{process_mark()}.part" in leftover.name:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def held(lock_file: Path, who: str) -> Iterator[None]:
    """Hold a lock on the file's folder, so that nobody else can hold the same one during the block.

    Args:
        lock_file: the file of the lock.
        who: who else may be writing to the folder, for the message, e.g. "run".

    Raises:
        UserError: somebody else holds it.
    """
    folder, lock = lock_file.parent, filelock.FileLock(lock_file)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(
            f"Another {who} is writing to {folder}; wait for it, or give another folder."
        ) from None
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs from writing to a folder while the block runs.

    Partial files left behind by a killed run are removed first.

    Raises:
        UserError: another run is writing to the folder.
    """
    with held(folder / _LOCK, "run"):
        clear_leftovers(folder)
        yield


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Serialize access to `path` across processes: the block waits until no other process is in it.

    The lock is a hidden file next to `path`, whose folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        yield


def parse_json(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
