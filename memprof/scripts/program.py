"""Runs the user's program as `__main__`, as `python train.py` and `python -m train` would."""

from __future__ import annotations

import atexit
import builtins
import os
import runpy
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from memprof.documents.script import ScriptSpec
from memprof.errors import MemprofError, UsageError
from memprof.scripts.places import caller, place_of
from memprof.scripts.stopping import ScriptRefused, ScriptStopped, ScriptTimedOut
from memprof.scripts.torchrun import wants_ranks
from memprof.user_code import describe, is_out_of_memory

_GRACE_SECONDS = 10  # for code that no exception can reach, such as a library call that never returns


def check_program(spec: ScriptSpec) -> None:
    """Refuse a file that does not exist or is not Python.

    Raises:
        UsageError: The file cannot be read or compiled; the sentence says why.
    """
    if spec.path is not None:
        compiled(spec.path)


def compiled(path: str) -> types.CodeType:
    """Return the compiled code of a file.

    Raises:
        UsageError: The file cannot be read, or it has a syntax error.
    """
    file = Path(path)
    if file.is_dir():
        raise UsageError(f"{path} is a folder; name the script in it, or give a package with -m")
    try:
        return compile(file.read_bytes(), str(file), "exec")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give the path of a training script") from None
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.msg}, so {path} is no Python program") from None
    except ValueError as error:
        raise UsageError(f"{path} is no Python program: {error}") from None


def run_program(spec: ScriptSpec) -> None:
    """Run the program until it ends or an exception leaves it.

    Raises:
        UsageError: The script itself failed; the sentence names the place.
        MemprofError: Memprof found an error in the script, which is passed on.
        BaseException: Memory ran out, or the script was ended by an exception of `memprof.scripts.stopping`.
    """
    try:
        _run(spec)
    except ScriptRefused as refused:
        raise refused.error from None
    except (MemprofError, ScriptStopped, ScriptTimedOut, KeyboardInterrupt):
        raise
    except SystemExit as left:
        if left.code not in (None, 0):
            raise UsageError(f"{spec.name} left by sys.exit({left.code!r}){_where(left)}") from left
    except BaseException as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(_sentence(spec, error)) from error


def _run(spec: ScriptSpec) -> None:
    if spec.path is None:
        sys.argv[:] = [spec.module or "", *spec.arguments]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(spec.module or "", run_name="__main__", alter_sys=True)
        return
    code = compiled(spec.path)
    sys.argv[:] = [spec.path, *spec.arguments]
    sys.path.insert(0, str(Path(spec.path).resolve().parent))
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=spec.path, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


def _sentence(spec: ScriptSpec, error: BaseException) -> str:
    place = _where(error)
    if isinstance(error, EOFError) and "reading a line" in str(error):
        return f"{spec.name} asks for input{place}, and here is nobody to answer; pass it as an argument"
    if isinstance(error, ImportError) and spec.module is not None and f"No module named {spec.module}" in str(error):
        return f"there is no module {spec.module!r} to run; start in the folder that has it, or install it"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{spec.name} needs the package {error.name!r}{place}, which is not installed here"
    if wants_ranks(error):
        return f"{spec.name} raised {describe(error)}: it expects torchrun's environment, which --world-size N gives it"
    return f"{spec.name} raised {describe(error)}"


def _where(error: BaseException) -> str:
    trace, found = error.__traceback__, ""
    while trace is not None:
        frame = caller(trace.tb_frame)
        if frame is trace.tb_frame:
            found = f" ({place_of(frame).rpartition(':')[0]}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found


@contextmanager
def own_exit_functions() -> Iterator[None]:
    """Run the functions that the program registers with `atexit` at the end of the `with` block, the last one first."""
    registered: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def register(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        registered.append((function, args, kwargs))
        return function

    def unregister(function: Callable[..., Any]) -> None:
        registered[:] = [one for one in registered if one[0] != function]

    with patch.object(atexit, "register", register), patch.object(atexit, "unregister", unregister):
        try:
            yield
        finally:
            while registered:
                function, args, kwargs = registered.pop()
                with suppress(BaseException):  # the figures are complete, and Python itself would go on as well
                    function(*args, **kwargs)


@contextmanager
def time_limit(seconds: float, give_up: Callable[[str], Any]) -> Iterator[None]:
    """Raise `ScriptTimedOut` in the script when its time is over. This works only in the main thread.

    Args:
        seconds: The seconds that the `with` block may take.
        give_up: Called with the place a little later if the script did not react; it does not return.
    """
    main = threading.get_ident()
    over = threading.Event()

    def place() -> str:
        return place_of(caller(sys._current_frames().get(main)))

    def ring(number: int, frame: types.FrameType | None) -> None:
        raise ScriptTimedOut(place_of(caller(frame)) if frame is not None else "")

    def watch() -> None:
        if not over.wait(seconds + _GRACE_SECONDS):
            give_up(place())

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    threading.Thread(target=watch, name="memprof timeout", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
