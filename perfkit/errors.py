"""The errors that reach the command line: one message, one hint, one exit code each."""


class PerfkitError(Exception):
    """Something went wrong that the user can act on.

    `message` says what and where; `hint` says what to do. Caught only in `perfkit.cli.main`.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PerfkitError):
    """The request is nonsense or contradicts itself."""

    exit_code = 2


class EnvironmentMissing(PerfkitError):
    """Something that the request needs is not on this machine."""

    exit_code = 3
