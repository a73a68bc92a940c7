"""Exceptions caused by user input rather than by a bug, and helpers for quoting values in messages."""

from typing import Any

# A value read from a damaged file may be as long as the file itself.
_LONGEST = 80
_LONGEST_REASON = 200


class UserError(ValueError):
    """Invalid user input; the message is one sentence that names the input, the reason, and the remedy.

    Scripts print the message and exit with status 2, without a traceback.
    """


class RunDropped(KeyboardInterrupt):
    """Raised when the user aborts a run immediately and discards its result; never caught along the way."""


def shown(value: Any) -> str:
    """Format a value from a file for an error message: on one line, truncated if long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def reason(error: BaseException) -> str:
    """Format a library's error about a damaged file: on one line, truncated, since it may quote the file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
