"""Splits a sweep into portions, i.e. batches of as many seeds as fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ge3d_jax.training.compilation import DoesNotFit

_Item = TypeVar("_Item")

# Prefix of XLA's error messages for failed allocations.
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


def make_in_portions(
    items: Sequence[_Item],
    most: int,
    make: Callable[[Sequence[_Item]], None],
    *,
    held: int,
    say: Callable[[str], None],
) -> Iterator[tuple[Sequence[_Item], Exception | None]]:
    """Process items in batches, reducing the batch size whenever a batch does not fit into memory.

    Args:
        items: the items to process.
        most: maximum batch size.
        make: processes a batch.
        held: bytes of memory that a batch needs regardless of its size.
        say: called with a message when the batch size is reduced.

    Yields:
        The items of each completed batch, and the error that it failed with, if any.
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
            # Not even a single item fits, so all remaining ones fail.
            portion, failure = waiting, error
        except Exception as error:
            if _OUT_OF_MEMORY in str(error) and len(portion) > 1:
                # A device needs more memory than the compiler's plan says.
                most = len(portion) // 2
                say(f"The device ran out of memory; trying {most} at a time.")
                continue
            failure = error
        yield portion, failure
        waiting = waiting[len(portion) :]


def in_portions(items: Sequence[_Item], most: int) -> list[Sequence[_Item]]:
    """Split items into batches of nearly equal size, at most `most`, with the larger ones first."""
    count = -(-len(items) // most)
    sizes = [len(items) // count + (index < len(items) % count) for index in range(count)]
    begins = [sum(sizes[:index]) for index in range(count)]
    return [items[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]


def _fitting(error: DoesNotFit, count: int, held: int) -> int:
    """How many items fit into memory, given that `count` do not; 0 if not even one does."""
    of_each = (error.needed - held) / count
    return min(count - 1, max(1, int((error.limit - held) / of_each)))
