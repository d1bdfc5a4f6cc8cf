"""How a script is ended from within: by exceptions that are no `Exception`, so that ordinary handlers let them pass."""

from __future__ import annotations

from memprof.errors import MemprofError


class ScriptStopped(BaseException):
    """The script has taken the steps that were asked for; it unwinds through its `finally` blocks."""


class ScriptRefused(BaseException):
    """Something was found that no `except Exception` of the script must swallow.

    Attributes:
        error: what to tell the user.
    """

    def __init__(self, error: MemprofError) -> None:
        super().__init__(str(error))
        self.error = error


class ScriptTimedOut(BaseException):
    """The time for the script is over.

    Attributes:
        place: the script's file and line that was running.
    """

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place
