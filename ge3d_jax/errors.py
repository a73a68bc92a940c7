"""The one exception that is a person's mistake rather than ours."""


class UserError(ValueError):
    """A bad input: one sentence that names the input, the reason and the remedy.

    Scripts print the sentence and exit with status 2; no traceback is shown.
    """
