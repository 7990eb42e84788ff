"""The error that a person sees."""


class UserError(ValueError):
    """A person's mistake or a condition that a person must mend: shown as one line, without a
    traceback, exit code 2."""
