"""A fault in the user's own code as one sentence that says where it is."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

from memprof.errors import MemprofError, UsageError

_LONGEST_MESSAGE = 300
# In the words of torch.distributed.tensor's dispatch, PyTorch 2.8 to 2.15.
_SHARDS = re.compile(r"\bplacements?\b|Sharding propagation|sharding strategy|sharded tensor|DTensor")
_HERE = str(Path(__file__).resolve().parent)


def guard(what: str, function: Callable[..., Any], file: str | None) -> Callable[..., Any]:
    """Return the function with what it raises turned into a `UsageError` that names type, message and line.

    Memory that runs out stays what it is: the trial reports it as `oom`, not as a mistake. So does a lost rank.

    Args:
        what: how the sentence calls the function, e.g. `train.py:build`.
        function: the user's function.
        file: the user's file, whose line is named if the fault passes through it.
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
    """Return `TypeError: message (train.py:12)`, the line being the last one in the user's file.

    Args:
        error: a caught exception, with its traceback.
        file: the user's file; where the traceback does not pass it, the last line outside memprof and
            installed packages is named, and failing that the last line outside memprof.
    """
    message = shorten(" ".join(str(error).split()), width=_LONGEST_MESSAGE, placeholder=" …")
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:  # the fault is in the text, not on the stack
        return f"{type(error).__name__}: {error.msg} ({_short(error.filename)}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and frame.filename == file]
    others = [frame for frame in frames if not frame.filename.startswith((_HERE, "<frozen"))]
    users = [frame for frame in others if "site-packages" not in frame.filename]
    place = (own or users or others)[-1:]
    return text + "".join(f" ({_short(frame.filename)}:{frame.lineno})" for frame in place)


def kind(value: object) -> str:
    """Return what a value is, with its article: `a dict`, `an int`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on the CPU or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def is_lost_rank(error: BaseException) -> bool:
    """Return whether an exception says that another rank is gone: the one that ended first knows why."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def raised(place: str, error: BaseException) -> str:
    """Return what was raised where; of operators that do not take tensors in shards (DTensor) it says just that."""
    how = "does not take FSDP's shards (DTensor):" if _SHARDS.search(str(error)) else "raised"
    return f"{place} {how} {describe(error)}"


def _short(filename: str) -> str:
    """Return a path as a reader knows it: within the package, else from the present folder on."""
    path = Path(filename)
    if "site-packages" in path.parts:  # where it is installed differs, and is nobody's business in a report
        return str(Path(*path.parts[path.parts.index("site-packages") + 1 :]))
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def calling_line() -> str:
    """Return the line of the user's code that runs at the moment, `train.py:12`; "" if none does.

    That is the innermost one outside memprof, installed packages and Python's own library.
    """
    library = str(Path(traceback.__file__).resolve().parent)
    for frame, line in traceback.walk_stack(None):  # the innermost first
        name = frame.f_code.co_filename
        if not name.startswith((_HERE, "<", library)) and "site-packages" not in name:
            return f"{_short(name)}:{line}"
    return ""
