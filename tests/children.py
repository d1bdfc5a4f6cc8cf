"""How tests start other processes: with default signals, with an end to every wait, and leaving none behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

# Only what hangs lives so long: a slow machine needs far less.
SECONDS = 900.0

Done = subprocess.CompletedProcess[str]
_T = TypeVar("_T")
# What `nohup`, a shell's `&` and some runners of continuous integration have their children ignore.
_OFTEN_IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)


@contextmanager
def started(
    command: Sequence[str | Path],
    *,
    seconds: float = SECONDS,
    ignoring: Collection[signal.Signals] = (),
    **options: Any,
) -> Iterator[subprocess.Popen[str]]:
    """Start a process for the `with` block, and end it afterwards with all that it started.

    It is killed after some time in any case, so whatever the block waits for, its end or a line, has an end too.

    Args:
        command: its program and arguments.
        seconds: after which it is killed, and the test fails.
        ignoring: signals that it starts with ignored; it has the default for all others.
        options: of `subprocess.Popen`.
    """
    with _signals_for_children(ignoring):
        child = subprocess.Popen(command, text=True, start_new_session=True, **options)
    late = threading.Event()

    def end_late() -> None:
        late.set()
        _end(child)

    watchdog = threading.Timer(seconds, end_late)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield child
    finally:
        watchdog.cancel()
        _end(child)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if late.is_set():
            pytest.fail(f"the child was killed: it had run for {seconds:g} s: {' '.join(map(str, command))[:500]}")


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    input: str | None = None,
    seconds: float = SECONDS,
    **options: Any,
) -> Done:
    """Run a process to its end and return what it wrote.

    Args:
        command: its program and arguments.
        check: fail if it ends with another code than 0.
        input: what it reads; nothing if not given.
        seconds: after which it is killed, and the test fails.
        options: of `subprocess.Popen`.
    """
    options = {"stdin": subprocess.DEVNULL if input is None else subprocess.PIPE, **options}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with started(command, seconds=seconds, **pipes) as child:
        out, err = child.communicate(input, timeout=seconds + 60)  # the watchdog comes first
    if check:
        assert child.returncode == 0, f"{' '.join(map(str, command))[:500]}\n{out}\n{err}"
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def until(condition: Callable[[], _T], child: subprocess.Popen[str]) -> _T:
    """Return what `condition` returns once that is true; the child, which has an end, must live until then."""
    while not (found := condition()):
        assert child.poll() is None, "the child ended before"
        time.sleep(0.05)
    return found


def family_of(child: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return what a process has started and what those have."""
    try:
        return psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def survivors(family: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return which processes still run, after some time to end."""
    deadline = time.monotonic() + SECONDS
    while alive := [member for member in family if _runs(member)]:
        if time.monotonic() > deadline:
            return alive
        time.sleep(0.05)
    return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end(child: subprocess.Popen[str]) -> None:
    """Kill a process, its group, and what it started that has made a group of its own."""
    family = family_of(child) if child.poll() is None else []
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    for member in family:
        with suppress(psutil.Error):
            member.kill()
    child.wait()


@contextmanager
def _signals_for_children(ignoring: Collection[signal.Signals]) -> Iterator[None]:
    """Have a process that is started in the block begin with default signals, but for those to ignore.

    A signal that is ignored stays so in a new program, and one that has a handler gets the default.
    """
    before = {number: signal.getsignal(number) for number in _OFTEN_IGNORED}
    for number, handler in before.items():
        if number in ignoring:
            signal.signal(number, signal.SIG_IGN)
        elif handler == signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
