"""Ends a short run, or fills the disk, at its n-th file operation for every n, and then resumes the run.

    python -m tests.runs.endings fit killed
    python -m tests.runs.endings generate full --every=3
    python -m tests.runs.endings sweep killed

A run is ended by an error at a file operation, after which all further ones fail as well: nothing more
reaches the disk, whatever the code does about it, as if the process were gone. The resumed run must produce
the same bytes as an undisturbed run. Each command takes some minutes; the tests try only a few n.
"""

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from absl import app, flags

import ge3d_jax
from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.fit import fit_images
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.posed_images import write_posed_images
from tests.tiny_model import IMAGE_SIZE, write_tiny_model

_EVERY = flags.DEFINE_integer("every", 1, "Try only every n-th file operation.", lower_bound=1)

_CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate")
# These need free space on the disk.
_GROWING = ("open", "os.mkdir")


class Killed(BaseException):
    """Simulates the death of the process."""


class Operations:
    """Counts the file operations below a folder, and makes them fail from a given one on."""

    def __init__(self) -> None:
        self._folder: str | None = None
        self._count = 0
        self._from = 0
        self._way = ""
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._folder is None or not self._is_writing(event, arguments):
            return
        if not str(os.path.abspath(os.fsdecode(arguments[0]))).startswith(self._folder):  # type: ignore[arg-type]
            return
        self._count += 1
        if not self._from or self._count < self._from:
            return
        if self._way == "killed":
            raise Killed
        if event in _GROWING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @staticmethod
    def _is_writing(event: str, arguments: tuple[object, ...]) -> bool:
        if event != "open":
            return event in _CHANGING and isinstance(arguments[0], (str, bytes, os.PathLike))
        path, _, opening = arguments
        writes = isinstance(opening, int) and opening & (os.O_WRONLY | os.O_RDWR)
        return isinstance(path, (str, bytes)) and bool(writes)

    @contextlib.contextmanager
    def counted(self, folder: Path, *, from_number: int = 0, way: str = "") -> Iterator[Callable[[], int]]:
        """Count the operations below `folder`, and make them fail from a given number on.

        Args:
            folder: the folder.
            from_number: number of the first failing operation, starting from 1; 0 for none.
            way: how they fail: "killed", or "full" for a full disk.

        Yields:
            A function that returns the number of operations so far.
        """
        self._folder, self._count = str(folder.resolve()), 0
        self._from, self._way = from_number, way
        try:
            yield lambda: self._count
        finally:
            self._folder = None


def whole_and_resumed(
    run: Callable[..., object], folder: Path, operations: Operations, number: int, way: str
) -> list[str]:
    """End a run at a file operation, and resume it.

    Args:
        run: (folder, resume=), a run that writes to a folder.
        folder: the folder to write to.
        operations: the operations that fail.
        number: number of the first failing operation.
        way: see `Operations.counted`.

    Returns:
        Sentences that describe deviations from the expected result.
    """
    folder.mkdir()
    wrong = []
    try:
        with operations.counted(folder, from_number=number, way=way):
            run(folder, resume=False)
    except Killed:
        pass
    except UserError as error:
        if way == "killed":
            wrong.append(f"killed: {error}")
    except Exception as error:
        wrong.append(f"{way}: {type(error).__name__}: {error}")
    if way == "full":
        wrong += _leftovers(folder)
    return wrong + resumed(run, folder)


def resumed(run: Callable[..., object], folder: Path) -> list[str]:
    """Resume a run that has ended, and return sentences that describe deviations from the expected result."""
    wrong = []
    try:
        run(folder, resume=True)
    except Exception as error:
        wrong.append(f"resumed: {type(error).__name__}: {error}")
    return wrong + _leftovers(folder)


def _leftovers(folder: Path) -> list[str]:
    return [f"left: {path.name}" for path in folder.rglob(".*.part*")]


def differing(folder: Path, whole: Path) -> list[str]:
    """Names of results that are missing or differ from those of an undisturbed run."""
    names = ("object.ply", "views.png", "turntable.gif", "viewer.html", "config.json")
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.name in names]
    return [
        str(file)
        for file in files
        if not (folder / file).is_file() or (folder / file).read_bytes() != (whole / file).read_bytes()
    ]


_FIT = {
    "views": 1,
    "start.count": 20,
    "scene.capacity": 20,
    "density.every": 0,
    "start.sh_degree": 0,
    "buffer_capacity": 4096,
}
_SMALL = {
    "views": 1,
    "image_size": IMAGE_SIZE,
    "start.kind": "ball",
    "start.count": 50,
    "guidance.kind": "sds",
}
_QUIET = {"progress": False, "save_seconds": 0}


def _fit(images: Path, folder: Path, *, resume: bool, iterations: int = 2) -> object:
    settings = _FIT | {"iterations": iterations}
    return fit_images(images, out=folder, overrides=settings, resume=resume, **_QUIET)


def _generate(model: Path, folder: Path, *, resume: bool, iterations: int = 2) -> object:
    given = {"model": model, "out": folder, "overrides": _SMALL | {"iterations": iterations}}
    return ge3d_jax.generate("a red mushroom", preview_every=1, resume=resume, **given, **_QUIET)


def _sweep(model: Path, folder: Path, *, resume: bool, iterations: int = 2) -> object:
    given = {"model": model, "out": folder, "overrides": _SMALL | {"iterations": iterations}}
    prompts = ["a red mushroom", "a blue cat"]
    result = ge3d_jax.sweep(prompts, preview_every=0, resume=resume, **given, **_QUIET)
    if resume and not result.is_complete:
        raise AssertionError(f"not all are finished: {[one.reason for one in result.outcomes]}")
    return result


def fitting(images: Path) -> Callable[..., object]:
    """A fit that saves its state after each iteration."""
    write_posed_images(images, Sentence("mushroom", "red"), views=2, test_views=1, size=16, seed=0)
    return partial(_fit, images)


def generating(model: Path) -> Callable[..., object]:
    """A run on a tiny model, with a saved state and a preview after each iteration."""
    write_tiny_model(model)
    return partial(_generate, model)


def sweeping(model: Path) -> Callable[..., object]:
    """A sweep of two prompts, likewise, one at a time so that each gives the same bytes as a single run."""
    write_tiny_model(model)
    return partial(_sweep, model)


# Prepares inputs in a folder, and returns (folder, resume=, iterations=), a short run that can be pickled.
KINDS = {"fit": fitting, "generate": generating, "sweep": sweeping}


def main(arguments: list[str]) -> None:
    """Try every n and report failures."""
    _, kind, way = arguments
    operations = Operations()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        run = KINDS[kind](base / "inputs")
        whole = base / "whole"
        whole.mkdir()
        with operations.counted(whole) as count:
            run(whole, resume=False)
            total = count()
        tried = range(1, total + 1, _EVERY.value)
        bad = 0
        for number in tried:
            folder = base / f"ended-{number}"
            wrong = whole_and_resumed(run, folder, operations, number, way)
            wrong += [f"differs: {name}" for name in differing(folder, whole)]
            bad += bool(wrong)
            print(f"{number}/{total}", *wrong, sep="; ", flush=True)
        print(f"{kind} {way}: {len(tried)} of {total} file operations tried, {bad} ended badly")


if __name__ == "__main__":
    app.run(main)
