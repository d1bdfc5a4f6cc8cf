from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import children
from tests.shared_server import COMMAND, shared_server

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]

# Stands in for `memprof.api.compare`: tells what a real comparison tells, in the same order, untrained.
FAKE = """
import sys
from memprof import api
from memprof.cli import main
from memprof.errors import UsageError
from memprof.workers.progress import Progress
from tests.comparisons import default_runs, make_broken_run, make_comparison

STATES = {states!r}

def runs():
    fine = default_runs()
    for index, state in enumerate(STATES):
        if state == "ok":
            yield fine.pop(0)
        elif state in ("oom", "failed"):
            yield make_broken_run(f"broken{{index}}", state, "it [broke]")
        else:
            errors = {{"interrupt": KeyboardInterrupt, "crash": RuntimeError, "usage": UsageError}}
            raise errors[state]("bad [thing]")

def compare(model, *, on_progress, on_comparison, **arguments):
    finished = []
    comparison = make_comparison(runs=[])
    environment = comparison.environment.model_copy(update={{"command": arguments["command"]}})
    comparison = comparison.model_copy(update={{"environment": environment}})
    for trial, run in enumerate(runs(), 1):
        finished.append(run)
        told = {{"trial": trial, "trials": len(STATES), "label": run.optimizer.spec, "purpose": "measure"}}
        on_progress(Progress(**told, stage="start"))
        on_progress(Progress(**told, stage="step", step=1, steps=3, peak_bytes=2**30))
        on_progress(Progress(**told, stage="done", run=run))
        comparison = comparison.model_copy(update={{"runs": list(finished)}})
        on_comparison(comparison)
    return comparison

api.compare = compare
sys.argv = ["memprof", "compare", *sys.argv[1:]]
sys.exit(main())
"""


def _run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
    shown = {"PYTHONPATH": str(ROOT), "TERM": "dumb", "TERMINAL_WIDTH": "100"}
    return children.run(command, cwd=cwd, env={**plain, **shown, **environment}, check=False)


@pytest.fixture(scope="session")
def server_address() -> Iterator[str]:
    """The address of the process that fork servers are forked from."""
    with TemporaryDirectory() as folder, shared_server(f"{folder}/socket"):  # the path of a socket has to be short
        yield f"{folder}/socket"


@pytest.fixture
def memprof(tmp_path: Path, server_address: str) -> Command:
    """Runs `memprof` in an empty folder; its fork servers need not import PyTorch."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return _run([sys.executable, "-c", COMMAND, server_address, *arguments], tmp_path, **environment)

    return run


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `memprof` in an empty folder within this process: for commands that start none of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "FORCE_COLOR", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        from memprof.cli import main

        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["memprof", *arguments])
        code = main()
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(["memprof", *arguments], int(code), shown.out, shown.err)

    return run


@pytest.fixture
def fake_compare(tmp_path: Path) -> Command:
    """Runs `memprof compare` in an empty folder with runs that end as told, and nothing trained."""

    def run(states: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        script = FAKE.format(states=states.split())
        return _run([sys.executable, "-c", script, "gpt2", *arguments], tmp_path, **environment)

    return run
