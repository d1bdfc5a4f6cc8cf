"""The exit codes and the errors that carry them. Only `memprof.cli.main` catches these errors."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The codes that the `memprof` command returns to the shell."""

    OK = 0
    BUDGET_EXCEEDED = 1
    USAGE = 2
    FAILED = 3
    NOTHING_TO_DO = 5
    INTERRUPTED = 130


class MemprofError(Exception):
    """An error that is shown as one sentence on stderr, without a traceback.

    Args:
        message: what is wrong and how to fix it, in one sentence.
        exit_code: the exit code of the command.

    Attributes:
        exit_code: the exit code of the command.
    """

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(MemprofError):
    """A user's mistake in an argument, a configuration file or a model file. Its exit code is 2.

    Args:
        message: what is wrong and how to fix it, in one sentence.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.USAGE)


def did_you_mean(name: str, known: list[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest of the known names, or the list of all if none is close.

    Args:
        name: the unknown name.
        known: the names to choose from.
    """
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose from {', '.join(sorted(known))}" if known else ""
