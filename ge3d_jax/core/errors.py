"""Exceptions caused by the user rather than by a bug, and values in their messages."""

from typing import Any

# A value of a damaged file may be as long as the file.
_LONGEST = 80
_LONGEST_REASON = 200


class UserError(ValueError):
    """Invalid input; the message is one sentence that names the input, the reason and the remedy.

    Scripts print the message and exit with status 2, without a traceback.
    """


class RunDropped(KeyboardInterrupt):
    """The user wants to abort a run at once, without its result; not caught on the way up."""


def shown(value: Any) -> str:
    """A value from a file for a message: in one line, and cut short if it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def reason(error: BaseException) -> str:
    """What a library says of a damaged file, which it may quote at length: in one line, and cut short."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
