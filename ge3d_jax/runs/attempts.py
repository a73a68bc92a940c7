"""Attempts to write files, none of which stands in the way of another, or of the run."""

import contextlib
from collections.abc import Iterator

from ge3d_jax.core.errors import reason


def reason_of(error: Exception) -> str:
    """Why something could not be written, in a few words: its path is told already."""
    return isinstance(error, OSError) and error.strerror or reason(error)


class Attempts:
    """What was tried, and what of it failed.

    Attributes:
        failed: a sentence for each thing that could not be written.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []

    @contextlib.contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Try to write `what`, which the block does. A disk may be full, a video have no encoder."""
        try:
            yield
        except Exception as error:
            self.failed.append(f"{what} could not be written ({reason_of(error)}).")
