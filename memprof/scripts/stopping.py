"""Exceptions that end a script from within. None is an `Exception`, so that ordinary handlers let them pass."""

from __future__ import annotations

from memprof.errors import MemprofError


class ScriptStopped(BaseException):
    """The script has taken all steps that it was to take, and it unwinds through its `finally` blocks."""


class ScriptRefused(BaseException):
    """Memprof found an error that no `except Exception` of the script may swallow.

    Attributes:
        error: The error to show to the user.
    """

    def __init__(self, error: MemprofError) -> None:
        super().__init__(str(error))
        self.error = error


class ScriptTimedOut(BaseException):
    """The time limit of the script has passed.

    Attributes:
        place: The file and line of the script that was running.
    """

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place
