from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from memprof.documents.comparison import Comparison
from tests import children
from tests.cli.conftest import ROOT, Command

pytest.importorskip("torch")

SMALL = ("compare", "mlp", "-b", "2", "--set", "d_model=64")
# mlp with d_model=64 and four hidden layers: weights and biases.
COUNT = (784 * 64 + 64) + 3 * (64 * 64 + 64) + (64 * 10 + 10)
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
FAULTY = """
import os, signal
import torch
from torch import nn

class Killer(torch.optim.SGD):
    def step(self, closure=None):
        os.kill(os.getpid(), signal.SIGKILL)

class Raiser(torch.optim.SGD):
    def step(self, closure=None):
        raise ValueError("bad [step]")
"""


def test_adam_and_sgd_on_a_small_mlp(memprof: Command, tmp_path: Path) -> None:
    done = memprof(*SMALL, "-o", "adam", "-o", "sgd", "--no-fit", "--export-json", "out.json")
    assert done.returncode == 0
    adam, sgd = Comparison.load(tmp_path / "out.json").runs
    assert adam.state is not None
    assert sgd.state is not None
    assert adam.peak is not None
    assert adam.breakdown is not None
    assert adam.parameters is not None
    assert adam.parameters.count == COUNT
    # Two moments, and a float32 step counter for each of the ten parameters.
    assert adam.state.bytes == 8 * COUNT + 10 * 4
    assert sgd.state.bytes == 0
    assert adam.breakdown.total_bytes == adam.peak.allocated_bytes
    assert "Measured:" in done.stdout
    assert done.stderr.splitlines()[0].startswith("[1/2] adam: peak ")
    assert done.stderr.splitlines()[-1] == "wrote out.json"


def test_the_recorded_command_can_be_run_again(memprof: Command) -> None:
    first = json.loads(memprof(*SMALL, "-o", "sgd", "--no-fit", "--json").stdout)
    command = first["environment"]["command"].split()
    assert command[0] == "memprof"
    again = json.loads(memprof(*command[1:]).stdout)
    assert again["runs"][0]["peak"]["allocated_bytes"] == first["runs"][0]["peak"]["allocated_bytes"]
    assert again["runs"][0]["steps"]["losses"] == first["runs"][0]["steps"]["losses"]


def test_the_fit_fills_the_budget(memprof: Command) -> None:
    done = memprof(*SMALL, "-o", "sgd", "--budget", "64MiB", "--json")
    answer = json.loads(done.stdout)["runs"][0]["fit"]["batch_size"]
    assert answer["method"] == "extrapolated"
    assert answer["peak_bytes"] <= 64 * 2**20 < answer["next_peak_bytes"]
    assert answer["next_value"] == answer["value"] + 1


def test_faulty_optimizers_are_rows_and_the_others_finish(memprof: Command, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    specs = [word for name in ("Killer", "Raiser") for word in ("-o", f"faulty.py:{name},lr=0.1")]
    done = memprof(*SMALL, *specs, "-o", "lbfgs", "-o", "sgd", "--no-fit", "--json")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert [run["status"] for run in runs] == ["failed", "failed", "failed", "ok"]
    assert "through a closure" in runs[2]["reason"]
    assert "SIGKILL" in runs[0]["reason"]
    assert "bad [step]" in runs[1]["reason"]


def test_out_of_memory_is_a_row(memprof: Command) -> None:
    done = memprof("compare", "mlp", "-b", "1000000000", "-o", "sgd", "--no-fit", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["runs"][0]["status"] == "oom"


def test_ctrl_c_keeps_finished_rows_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memprof", *SMALL, "-o", "sgd", "-o", "adam", "--steps", "100000"]
    command += ["--export-json", "out.json", "--no-fit"]
    quick = [*command]
    quick[quick.index("100000")] = "2"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    children.run(quick, cwd=tmp_path, env=environment)
    assert len(Comparison.load(tmp_path / "out.json").runs) == 2
    (tmp_path / "out.json").unlink()
    with children.started(command, cwd=tmp_path, env=environment, **PIPES) as child:
        family = children.until(lambda: _with_a_worker(child), child)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=children.SECONDS)
        assert children.survivors(family) == []
    assert child.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err + out


def test_ctrl_c_is_ignored_where_the_parent_wants_it_and_another_signal_ends_all(tmp_path: Path) -> None:
    """As with `nohup memprof ... &`: who starts it so does not want it to end by a Ctrl-C that is meant for others."""
    command = [sys.executable, "-m", "memprof", *SMALL, "-o", "sgd", "--steps", "100000", "--no-fit"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with children.started(command, cwd=tmp_path, env=environment, ignoring=[signal.SIGINT], **PIPES) as child:
        family = children.until(lambda: _with_a_worker(child), child)
        for process in (psutil.Process(child.pid), *family):
            process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert child.poll() is None
        assert all(member.is_running() for member in family)
        child.terminate()
        assert child.wait() == -signal.SIGTERM
        assert children.survivors(family) == []


def _with_a_worker(child: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the fork server and the worker once there are both, and training for some time; nothing before."""
    family = children.family_of(child)
    return family if len(family) >= 2 and time.time() - family[-1].create_time() > 1 else []
