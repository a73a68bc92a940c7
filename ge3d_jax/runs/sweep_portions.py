"""Portions of a sweep: as many seeds at a time as fit the memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ge3d_jax.training.compilation import DoesNotFit

_Item = TypeVar("_Item")

# How XLA's errors begin where an allocation failed.
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


def make_in_portions(
    items: Sequence[_Item],
    most: int,
    make: Callable[[Sequence[_Item]], None],
    *,
    held: int,
    say: Callable[[str], None],
) -> Iterator[tuple[Sequence[_Item], Exception | None]]:
    """Make items in portions, in smaller ones from where a portion did not fit the memory.

    Args:
        items: what to make.
        most: how many at a time at most.
        make: makes a portion.
        held: bytes of what a portion takes that are not its items'.
        say: told where portions become smaller.

    Yields:
        The items of each portion once they are through, and the error that they failed with, if any.
    """
    waiting = items
    while waiting:
        portion = in_portions(waiting, most)[0]
        failure: Exception | None = None
        try:
            make(portion)
        except DoesNotFit as error:
            fewer = _fitting(error, len(portion), held)
            if fewer:
                say(f"{len(portion)} seeds take more memory than there is; trying {fewer} at a time.")
                most = fewer
                continue
            # Not even one fits, of these or of the rest.
            portion, failure = waiting, error
        except Exception as error:
            if _OUT_OF_MEMORY in str(error) and len(portion) > 1:
                # The compiler's plan is not all that a device needs.
                most = len(portion) // 2
                say(f"The device ran out of memory; trying {most} at a time.")
                continue
            failure = error
        yield portion, failure
        waiting = waiting[len(portion) :]


def in_portions(items: Sequence[_Item], most: int) -> list[Sequence[_Item]]:
    """The items in portions of nearly one size, the larger ones first, and none of more than `most`."""
    count = -(-len(items) // most)
    sizes = [len(items) // count + (index < len(items) % count) for index in range(count)]
    begins = [sum(sizes[:index]) for index in range(count)]
    return [items[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]


def _fitting(error: DoesNotFit, count: int, held: int) -> int:
    """How many items fit the memory, fewer than `count` that do not; 0 where not even one does."""
    of_each = (error.needed - held) / count
    return min(count - 1, max(1, int((error.limit - held) / of_each)))
