"""Describes an error in the user's own code in one sentence that says where it is."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

from memprof.errors import MemprofError, UsageError

_LONGEST_MESSAGE = 300
# These words come from the dispatch of torch.distributed.tensor, PyTorch 2.8 to 2.15.
_SHARDS = re.compile(r"\bplacements?\b|Sharding propagation|sharding strategy|sharded tensor|DTensor")
_HERE = str(Path(__file__).resolve().parent)


def guard(what: str, function: Callable[..., Any], file: str | None) -> Callable[..., Any]:
    """Return a function whose errors become a `UsageError` that names their type, message and line.

    An out-of-memory error is passed on unchanged, as the trial reports it as `oom` and not as a mistake. So is the
    error of a lost rank.

    Args:
        what: How the sentence names the function, for example `train.py:build`.
        function: The user's function.
        file: The user's file. The line in it is named if the error passes through it.
    """

    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except MemprofError:
            raise
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error) or is_lost_rank(error):
                raise
            raise UsageError(f"{what} raised {describe(error, file)}") from error

    return guarded


def describe(error: BaseException, file: str | None = None) -> str:
    """Return a text such as `TypeError: message (train.py:12)`, with the last line in the user's file.

    Args:
        error: A caught exception, with its traceback.
        file: The user's file. If the traceback does not pass through it, the last line outside memprof and installed
            packages is named. If there is none, it is the last line outside memprof.
    """
    message = shorten(" ".join(_message(error).split()), width=_LONGEST_MESSAGE, placeholder=" …")
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:  # the error is in the text, not on the stack
        return f"{type(error).__name__}: {error.msg} ({_short(error.filename)}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and frame.filename == file]
    others = [frame for frame in frames if not frame.filename.startswith((_HERE, "<frozen"))]
    users = [frame for frame in others if "site-packages" not in frame.filename]
    place = (own or users or others)[-1:]
    return text + "".join(f" ({_short(frame.filename)}:{frame.lineno})" for frame in place)


def kind(value: object) -> str:
    """Return the type of a value with its article: `a dict`, `an int`.

    Args:
        value: Any object.
    """
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on the CPU or on a GPU.

    Args:
        error: The exception.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def is_lost_rank(error: BaseException) -> bool:
    """Return whether an exception says that another rank is gone. The rank that ended first knows the cause.

    Args:
        error: The exception.
    """
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def raised(place: str, error: BaseException) -> str:
    """Return a sentence about an error and where it was raised.

    If an operator does not take sharded tensors (DTensor), the sentence says so.

    Args:
        place: The name of the place.
        error: The exception.
    """
    how = "does not take FSDP's shards (DTensor):" if _SHARDS.search(str(error)) else "raised"
    return f"{place} {how} {describe(error)}"


def _message(error: BaseException) -> str:
    """Return the message of an exception as text that every output can take, or nothing if it cannot be had."""
    try:
        return str(error).encode("utf-8", "backslashreplace").decode("utf-8")
    except Exception:  # the user's own `__str__`
        return ""


def _short(filename: str) -> str:
    """Return a path within its installed package, or else relative to the current folder."""
    path = Path(filename)
    if "site-packages" in path.parts:  # the folder of installation differs between machines, so a report omits it
        return str(Path(*path.parts[path.parts.index("site-packages") + 1 :]))
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
