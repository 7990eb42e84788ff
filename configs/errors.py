"""The error that a person sees."""

from manyfaces.configs.redact import redact


class UserError(ValueError):
    """A person's mistake or a condition that a person must mend: shown as one line, without a
    traceback, exit code 2. Credentials in URLs of the message are hidden."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))
