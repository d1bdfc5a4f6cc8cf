"""The `memprof` command. This is the only place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import traceback
from contextlib import suppress
from typing import Any, TextIO

import typer

from memprof.cli.app import app
from memprof.cli.help import prepare_help
from memprof.cli.options import debug_asked
from memprof.errors import ExitCode, MemprofError


def main() -> int:
    """Run the command line in `sys.argv` and return its exit code."""
    _open_closed_streams()
    _outlast_readers()
    _replace_unprintable_characters(sys.stdout, sys.stderr)
    code = _run()
    if code == ExitCode.INTERRUPTED:
        _complain("interrupted")
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else the interpreter flushes again at its exit and complains
        return code if code == ExitCode.FAILED else _explain(error)  # a failed command has said why
    return code


class _Outlasting(io.FileIO):
    """A pipe that is written to nowhere once its reader has gone away."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return super().write(data)


def _outlast_readers() -> None:
    """Let a command go on to its own exit code where a reader takes a part only, as in `memprof devices | head -1`."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and isinstance(getattr(out.buffer, "raw", out.buffer), io.FileIO):
        if not stat.S_ISFIFO(os.fstat(out.fileno()).st_mode):
            return
        raw = _Outlasting(out.fileno(), "w", closefd=False)
        binary = raw if isinstance(out.buffer, io.FileIO) else io.BufferedWriter(raw)  # `python -u` has no buffer
        sys.stdout = io.TextIOWrapper(binary, out.encoding, out.errors, write_through=out.write_through)


def _open_closed_streams() -> None:
    """Connect closed standard streams to the null device; otherwise the next files opened get their file numbers."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which in this order is the stream's own
            os.set_inheritable(number, True)  # for worker processes
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))


def _run() -> int:
    if not {"-h", "--help"}.isdisjoint(sys.argv):
        prepare_help()
    try:
        result = app(standalone_mode=False, prog_name="memprof")
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except Exception as error:
        if debug_asked():
            traceback.print_exc()
        return _explain(error)
    return result if isinstance(result, int) else ExitCode.OK


def _explain(error: Exception) -> int:
    """Print one sentence and return the exit code."""
    if isinstance(error, MemprofError):
        _complain(f"error: {error}")
        return error.exit_code
    # Newer versions of Typer contain a copy of Click, older ones import Click itself. To import neither, usage errors
    # are recognised by a method that both have.
    describe = getattr(error, "format_message", None)
    if callable(describe):
        what = describe().rstrip(".")
        _complain(f"error: {what}{' See' if what.endswith('?') else '; see'} {_help_command(error)}")
        return ExitCode.USAGE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _complain(f"error: cannot write the output: {error.strerror}; make room and run it again")
        return ExitCode.FAILED
    text = " ".join(str(error).split())
    hint = "" if debug_asked() else "; use --debug for the traceback"
    _complain(f"error: {type(error).__name__}: {text} (a fault of memprof{hint})")
    return ExitCode.FAILED


def _help_command(error: Exception) -> str:
    path = getattr(getattr(error, "ctx", None), "command_path", "memprof")
    return f"`{path} --help`"


def _complain(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _replace_unprintable_characters(*streams: TextIO) -> None:
    """Print a question mark for a character that the terminal cannot show, instead of raising an error."""
    for stream in streams:
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[attr-defined]
