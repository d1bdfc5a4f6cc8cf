"""The `memprof` command: the one place where errors become a sentence and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import suppress
from typing import TextIO

import typer

from memprof.cli.app import app
from memprof.cli.help import prepare_help
from memprof.cli.options import debug_asked
from memprof.errors import ExitCode, MemprofError


def main() -> int:
    """Run the command line in `sys.argv` and return its exit code."""
    _open_what_is_closed()
    _print_whatever_happens(sys.stdout, sys.stderr)
    code = _run()
    if code == ExitCode.INTERRUPTED:
        _complain("interrupted")
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter would flush again and complain
        return code if isinstance(error, BrokenPipeError) else _explain(error)  # `memprof models | head` is no error
    return code


def _open_what_is_closed() -> None:
    """Let stdin, stdout and stderr be nothing where they are closed: else the next files opened take their numbers."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: its own, in this order
            os.set_inheritable(number, True)  # for worker processes
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))


def _run() -> int:
    if not {"-h", "--help"}.isdisjoint(sys.argv):
        prepare_help()
    try:
        result = app(standalone_mode=False, prog_name="memprof")
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except SystemExit as error:  # Typer's own way out when a pipe breaks
        return ExitCode.FAILED if error.code else ExitCode.OK
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
    # Typer brings its own copy of Click, older versions need Click itself: neither is to be imported, so
    # usage errors are known by what both give them.
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


def _print_whatever_happens(*streams: TextIO) -> None:
    """Let a terminal that cannot show a character show a question mark instead of a traceback."""
    for stream in streams:
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[attr-defined]
