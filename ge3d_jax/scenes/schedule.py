"""When density control acts."""


def is_due(done: int, *, first: int, last: int, every: int) -> bool:
    """Return whether something acts after `done` iterations, from `first` to `last`; `every` 0 for never."""
    return every > 0 and first <= done <= last and done % every == 0
