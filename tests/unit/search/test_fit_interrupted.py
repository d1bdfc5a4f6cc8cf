"""A fit that ends early: what is finished is kept, shown and exported, cell by cell."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import memprof
from memprof.cli.fit import exit_code
from memprof.documents.fit import FitReport
from memprof.documents.jobs import Inquiry
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import ExitCode
from memprof.report.content import fit as fits
from memprof.report.render.terminal import make_console
from memprof.search.bracket import UNTRAINED
from memprof.workers.launcher import Launcher
from memprof.workers.pool import Workers
from tests import children

ROOT = Path(__file__).parents[3]
FILE = ROOT / "tests" / "data" / "models" / "lengths.py"
SMALL_AND_LARGE = ("1GiB", "8GiB")
MARGIN = "470MiB"  # of 498 MiB beside the CUDA context


def test_report_so_far_is_told_after_every_cell(launcher: Launcher):
    reports: list[FitReport] = []
    done = memprof.fit(
        "mlp",
        optimizers=["sgd", "adam"],
        devices=["cpu"],
        budget="12MiB",
        on_report=reports.append,
        launcher=launcher,
    )
    pending = [[cell.pending for cell in report.cells] for report in reports]
    assert pending[:2] in ([[False, True], [False, False]], [[True, False], [False, False]])
    methods = [[cell.answer and cell.answer.method for cell in report.cells] for report in reports[1:]]
    assert methods[0] == ["predicted", "predicted"]
    assert methods[-1] == ["confirmed", "confirmed"]
    assert all(cell.answer.notes == [UNTRAINED] for cell in reports[1].cells)
    assert reports[-1].cells == done.cells
    assert not any(cell.pending for cell in done.cells)

    shown = io.StringIO()
    fits.show(reports[0], make_console(shown))
    assert "The fit was interrupted: 1 of 2 cells are not finished." in shown.getvalue()
    assert "no reason was given" not in shown.getvalue()


def test_worker_that_dies_leaves_its_reason_in_what_it_had_not_finished(launcher: Launcher):
    options = {"devices": SMALL_AND_LARGE, "margin": MARGIN, "launcher": launcher}
    report = memprof.fit(f"{FILE}:deadly", optimizers=["sgd"], **options)
    small, large = report.cells
    assert 0 < small.answer.value < 200
    assert large.answer is None
    assert not large.pending
    assert large.reason == "the worker process ended without a result (exit code 9)"
    assert exit_code(report) == ExitCode.FAILED


def test_ctrl_c_shows_and_exports_what_is_finished(tmp_path: Path):
    command = [sys.executable, "-m", "memprof", "fit", f"{FILE}:stuck", "-o", "sgd", "--margin", MARGIN]
    command += [*(word for size in SMALL_AND_LARGE for word in ("--device", size)), "--export-json", "fit.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with children.started(command, cwd=tmp_path, env=environment, **pipes) as child:
        children.until((tmp_path / "fit.json").exists, child)
        child.send_signal(signal.SIGINT)
        shown, said = child.communicate(timeout=children.SECONDS)
    assert child.returncode == ExitCode.INTERRUPTED, said
    assert said.splitlines()[-1] == "interrupted"
    assert "1 of 2 cells are not finished" in shown
    small, large = FitReport.load(tmp_path / "fit.json").cells
    assert 0 < small.answer.value < 200
    assert (large.answer, large.reason, large.pending) == (None, None, True)


def test_servers_outlive_an_error_that_the_caller_may_handle():
    """A model that cannot be predicted is trained instead, by the same servers."""
    jobs = [Inquiry(workload=WorkloadSpec(model="mlp"), optimizers=[], devices=[name]) for name in ("gtx-9000", "cpu")]
    with Workers(2) as workers:
        with pytest.raises(memprof.MemprofError) as caught:
            workers.run(jobs, lambda number, step: None)
        assert caught.value.exit_code == ExitCode.USAGE
        for launcher in workers.launchers:
            assert launcher.run(jobs[1]).devices[0].name == "cpu"
