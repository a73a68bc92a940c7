"""The exceptions that are a person's doing rather than ours."""


class UserError(ValueError):
    """A bad input: one sentence that names the input, the reason and the remedy.

    Scripts print the sentence and exit with status 2; no traceback is shown.
    """


class RunDropped(KeyboardInterrupt):
    """The person wants a run ended at once, without its result; not caught on the way up."""
