"""The folder of an edited picture, to which one edit writes at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ge3d_jax.core.files import locked, remove_files
from ge3d_jax.editing.methods import METHODS

_FILES = ("config.json", "source.png", "edited.png", "nodes.png", "compare.png", "compare.html")
_METHOD_FILES = ("edited.png", "inversion.png", "trajectory.png", "words.png")


@contextlib.contextmanager
def edit_folder(folder: Path) -> Iterator[None]:
    """Remove what an earlier edit wrote, by whichever method, and keep other edits out while the block runs.

    Raises:
        UserError: another edit is writing to the folder.
    """
    with locked(folder):
        remove_files(folder / name for name in _FILES)
        for method in METHODS:
            remove_files(folder / method / name for name in _METHOD_FILES)
            # Anything else in it is not ours.
            with contextlib.suppress(OSError):
                (folder / method).rmdir()
        yield
