"""Best-effort file writes, whose failure affects neither the run nor other files."""

import contextlib
from collections.abc import Iterator

from ge3d_jax.core.errors import reason


def reason_of(error: Exception) -> str:
    """A brief reason why something could not be written, without the path, which the message has already."""
    return isinstance(error, OSError) and error.strerror or reason(error)


class Attempts:
    """Collects the failures of best-effort writes.

    Attributes:
        failed: one sentence for each thing that could not be written.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []

    @contextlib.contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Record a failure if the block that writes `what` raises: a full disk, or no encoder for a video."""
        try:
            yield
        except Exception as error:
            self.failed.append(f"{what} could not be written ({reason_of(error)}).")
