"""The errors a user can cause or meet: one clear line and a documented exit code each.

Every message says what was found, what was expected and what to do. The command line prints the message without a
traceback; anything that is not a CadiffError is a bug of ours and keeps its traceback.
"""


class CadiffError(Exception):
    """Base of every error that ends in one line; ``exit_code`` is what the process returns."""

    exit_code = 2


class ConfigError(CadiffError):
    """A key, value, flag or missing input that the user can correct. Exit code 2."""


class DataError(CadiffError):
    """Data that cannot be used: damaged, incomplete, or sound but not what the command takes. Exit code 3."""

    exit_code = 3


class NonFiniteError(CadiffError):
    """A loss became NaN or infinite; every rank stops together. Exit code 4."""

    exit_code = 4


class Preempted(CadiffError):
    """The job was asked to stop, saved its state, and should be queued again. Exit code 75."""

    exit_code = 75
