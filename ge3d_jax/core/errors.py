"""Exceptions caused by the user rather than by a bug."""


class UserError(ValueError):
    """Invalid input; the message is one sentence that names the input, the reason and the remedy.

    Scripts print the message and exit with status 2, without a traceback.
    """


class RunDropped(KeyboardInterrupt):
    """The user wants to abort a run at once, without its result; not caught on the way up."""
