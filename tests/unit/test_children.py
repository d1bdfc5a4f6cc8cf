"""The helper by which tests start processes, and that all of them use it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import children

TESTS = Path(__file__).parents[1]
ASK = "import signal; print(*(int(signal.getsignal(s) == signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGQUIT)))"
# Starts a process in a session of its own, which no signal to the group reaches, says its number, and hangs.
HANGS = """
import subprocess, sys, time
command = [sys.executable, "-c", "import time; time.sleep(600)"]
print(subprocess.Popen(command, start_new_session=True).pid, flush=True)
time.sleep(600)
"""
# Programs that are run by hand on a GPU's machine, and a benchmark that forks as memprof's server does.
OWN_WAY = {
    "shared_server.py",  # its fork servers are ended by the commands that they serve
    "children.py",
    "independent_count.py",  # runs in a child, and forks within its group
    "record.py",
    "record_models.py",
    "record_operators.py",
    "real_ranks.py",
    "test_compare_speed.py",
}
STARTS = re.compile(
    r"subprocess\.(?:run|Popen|call|check_\w+)\(|os\.(?:fork|system|popen|spawn\w+)\(|\.Process\(target"
)


@pytest.fixture
def in_the_background() -> Iterator[None]:
    """As for what a script starts with `&`."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("in_the_background")
def test_children_have_default_signals_whatever_the_tests_were_started_with() -> None:
    assert subprocess.run([sys.executable, "-c", ASK], capture_output=True, timeout=60, check=True).stdout == b"1 1\n"
    assert children.run([sys.executable, "-c", ASK]).stdout == "0 0\n"
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as before
    with children.started([sys.executable, "-c", ASK], ignoring=[signal.SIGINT], stdout=subprocess.PIPE) as child:
        assert child.communicate(timeout=60)[0] == "1 0\n"


def first_line(child: subprocess.Popen[str]) -> psutil.Process:
    assert child.stdout is not None
    return psutil.Process(int(child.stdout.readline()))


def test_what_hangs_is_ended_with_all_that_it_started() -> None:
    found: list[psutil.Process] = []

    def waits_for_ever() -> None:
        with children.started([sys.executable, "-c", HANGS], seconds=5, stdout=subprocess.PIPE) as child:
            found.append(first_line(child))
            child.wait()

    with pytest.raises(pytest.fail.Exception, match="had run for 5 s"):
        waits_for_ever()
    assert children.survivors(found) == []


def test_a_test_that_fails_ends_what_it_started() -> None:
    found: list[psutil.Process] = []

    def fails() -> None:
        with children.started([sys.executable, "-c", HANGS], stdout=subprocess.PIPE) as child:
            found.extend([first_line(child), psutil.Process(child.pid)])
            raise LookupError

    with pytest.raises(LookupError):
        fails()
    assert children.survivors(found) == []


def test_a_failure_says_what_the_child_wrote() -> None:
    with pytest.raises(AssertionError, match="the reason"):
        children.run([sys.executable, "-c", "import sys; sys.exit('the reason')"])


def test_every_test_starts_processes_this_way() -> None:
    others = [path for path in TESTS.rglob("*.py") if path.name not in OWN_WAY and path != Path(__file__)]
    assert len(others) > 100
    assert [str(path) for path in others if STARTS.search(path.read_text())] == []
