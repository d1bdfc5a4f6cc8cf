"""The gate with real trials: a sample repository through its life, and the ways in which a trial can end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import xmlschema

from memprof.gate.report import Report
from tests import children
from tests.cli.conftest import ROOT, Command

pytest.importorskip("torch")

DATA = Path(__file__).parents[1] / "data" / "gate"
FAULTY = """
import os, signal
import torch
from torch import nn

class Killer(torch.optim.SGD):
    def step(self, closure=None):
        os.kill(os.getpid(), signal.SIGKILL)

def model():
    raise RuntimeError("no [weights]")
"""
MEASURED = """
[defaults]
model = "mlp"
batch_size = 2
knobs = { d_model = 64 }
device = "cpu"
[budgets.killed]
optimizers = ["faulty.py:Killer,lr=0.1", "sgd"]
[budgets.fine]
optimizers = ["adam"]
repeats = 2
process_bytes = { limit = "1 KiB", level = "warn" }
state_bytes = "100 MiB"
"""


def test_a_sample_repository_through_init_pass_growth_update_pass(memprof: Command, tmp_path: Path) -> None:
    shutil.copy(DATA / "sample" / "train.py", tmp_path)
    init = memprof("gate", "init", "train.py:build", "-b", "32", "--device", "rtx-3060", "-o", "sm3", "-o", "adam")
    assert init.returncode == 0, init.stderr

    accepted = json.loads((tmp_path / "memprof-baseline.json").read_text())["entries"]["build"]
    before = accepted["adam"]["values"]["peak_allocated_bytes"]
    set_ceiling(tmp_path, before + 30 * 2**20)
    assert memprof("gate").returncode == 0

    # The change: the first layer of every block computes 6 features for each of its inputs, where it was 4.
    program = (tmp_path / "train.py").read_text()
    (tmp_path / "train.py").write_text(program.replace("factor=4", "factor=6"))
    failed = memprof("gate", "--export-json", "out.json", "--export-junit", "out.xml", GITHUB_STEP_SUMMARY="summary.md")
    assert failed.returncode == 1
    assert "build/adam: peak_allocated_bytes is" in failed.stdout
    assert "why: activations +32.00 MiB in layers.*.mlp" in failed.stdout  # 2 tensors x 4 blocks x 32 x 64 x 512 x 4 B
    state = r"adam: state_bytes .*\n  why: optimizer state \+8\.02 MiB(, most of it)? in layers\.\*\.mlp"
    assert re.search(state, failed.stdout)
    assert "fits: optimizer sm3" in failed.stdout
    assert "fits: batch_size = " in failed.stdout
    assert failed.stdout.splitlines()[-1] == "  memprof gate --update-baseline"
    xmlschema.XMLSchema(DATA / "junit.xsd").validate(tmp_path / "out.xml")
    assert "layers.\\*.mlp" in (tmp_path / "summary.md").read_text()
    report = Report.load(tmp_path / "out.json")
    batch = next(int(r.split()[-1]) for v in report.failures for r in v.remedies if r.startswith("batch_size"))
    assert 1 <= batch < 32

    set_ceiling(tmp_path, before + 60 * 2**20)
    updated = memprof("gate", "--update-baseline")
    assert updated.returncode == 0
    # 4 blocks of 1024 -> 1536 features: 512 rows of one layer and 512 columns of the other, and 512 biases.
    assert "build/sm3 state_bytes: 69.08 KiB -> 93.08 KiB, +24.00 KiB (+34.7 %)" in updated.stdout
    assert memprof("gate", "--from", "out.json").returncode == 0


def test_a_new_default_of_a_knob_that_nobody_set_is_seen(memprof: Command, tmp_path: Path) -> None:
    shutil.copy(DATA / "sample" / "train.py", tmp_path)
    init = memprof(
        "gate", "init", "train.py:build", "-b", "1", "--device", "rtx-3060", "-o", "sm3", "--set", "n_layers=1"
    )
    assert init.returncode == 0, init.stderr
    assert "knobs = { n_layers = 1 }" in (tmp_path / "memprof.toml").read_text()
    program = (tmp_path / "train.py").read_text()
    (tmp_path / "train.py").write_text(program.replace("width: int = 256", "width: int = 320"))
    failed = memprof("gate")
    assert failed.returncode == 1
    assert "why: width 256 is now 320" in failed.stdout


def set_ceiling(folder: Path, size: int) -> None:
    config = folder / "memprof.toml"
    text, count = re.subn(
        r'peak_allocated_bytes = \["[^"]+"', f'peak_allocated_bytes = ["{size} B"', config.read_text()
    )
    assert count == 1
    config.write_text(text)


def test_the_batch_size_that_is_said_to_fit_fits(memprof: Command, tmp_path: Path) -> None:
    model = 'model = "gpt2"\nknobs = { n_layers = 2, seq_len = 256 }\noptimizers = ["adam"]'
    defaults = f'[defaults]\n{model}\ndevice = "12GiB"\n'
    (tmp_path / "memprof.toml").write_text(f"{defaults}[budgets.large]\nbatch_size = 96\n")
    done = memprof("gate", "--format", "json")
    assert done.returncode == 1
    (verdict,) = json.loads(done.stdout)["verdicts"]
    assert verdict["status"] == "does-not-fit"
    assert "needed" in verdict["reason"]
    assert any(cause.startswith("activations") for cause in verdict["why"])
    batch = int(verdict["remedies"][-1].split()[-1])
    entries = f"[budgets.fits]\nbatch_size = {batch}\n[budgets.not]\nbatch_size = {batch + 1}\n"
    (tmp_path / "memprof.toml").write_text(defaults + entries)
    fits, larger = json.loads(memprof("gate", "--format", "json").stdout)["verdicts"]
    assert (fits["status"], larger["status"]) == ("passed", "does-not-fit")


SCRIPTS = """
[defaults]
device = "rtx-4090"
batch_size = 64
[budgets.fits]
script = "scripts/batches.py --batch_size=8"
optimizers = ["as-is", "sm3"]
state_bytes = ["9 MiB", "+1%"]
peak_allocated_bytes = "1 GiB"
"""


def test_budgets_of_scripts(memprof: Command, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(DATA.parent / "scripts" / "batches.py", tmp_path / "scripts")
    config = tmp_path / "memprof.toml"
    config.write_text(SCRIPTS)
    accepted = memprof("gate", "--update-baseline")
    assert accepted.returncode == 0, accepted.stderr
    baseline = json.loads((tmp_path / "memprof-baseline.json").read_text())["entries"]["fits"]
    assert baseline["as-is"]["setup"] == {"model": "scripts/batches.py --batch_size=8"}
    assert baseline["sm3"]["values"]["state_bytes"] < baseline["as-is"]["values"]["state_bytes"] / 100

    # Twice the width: four times the state, and a setup that is not the baseline's.
    config.write_text(SCRIPTS.replace("--batch_size=8", "--batch_size=8 --width=512"))
    over = memprof("gate", "--export-json", "over.json")
    assert over.returncode == 1
    changed = "script scripts/batches.py --batch_size=8 is now scripts/batches.py --batch_size=8 --width=512"
    assert changed in over.stdout
    assert "fits: optimizer sm3" in over.stdout
    assert "batch_size = " not in over.stdout
    config.write_text(SCRIPTS)
    other = memprof("gate", "--from", "over.json")
    assert other.returncode == 2
    assert "with script 'scripts/batches.py --batch_size=8 --width=512', and the entry says" in other.stderr

    failing = '[budgets.fails]\nscript = "scripts/batches.py --batch_size=7"\n'
    config.write_text(f"{SCRIPTS}{failing}")
    failed = memprof("gate")
    assert failed.returncode == 3
    assert "a batch of 7 cannot be halved" in failed.stdout
    assert "fits/sm3" in failed.stdout

    config.write_text('[budgets.missing]\nscript = "scripts/batch.py"\n')
    missing = memprof("gate")
    assert missing.returncode == 2
    assert "cannot read scripts/batch.py" in missing.stdout

    config.write_text(
        '[budgets.large]\nscript = "scripts/batches.py --width=8192"\ndevice = "rtx-4090"\ncapacity = "1 GiB"\n'
    )
    large = memprof("gate")
    assert large.returncode == 1
    assert "does not fit" in large.stdout


def test_a_killed_worker_exits_3_and_the_other_entries_are_judged(memprof: Command, tmp_path: Path) -> None:
    (tmp_path / "memprof.toml").write_text(MEASURED)
    (tmp_path / "faulty.py").write_text(FAULTY)
    done = memprof("gate", "--format", "json")
    assert done.returncode == 3
    report = json.loads(done.stdout)
    verdicts = {(v["entry"], v["optimizer"], v["metric"]): v for v in report["verdicts"]}
    assert "SIGKILL" in verdicts["killed", "faulty.py:Killer,lr=0.1", None]["reason"]
    assert verdicts["killed", "sgd", None]["status"] == "passed"
    assert verdicts["fine", "adam", "process_bytes"]["weight"] == "warning"
    assert verdicts["fine", "adam", "state_bytes"]["weight"] == "ok"


def test_a_model_that_raises_exits_2_and_the_other_entries_are_judged(memprof: Command, tmp_path: Path) -> None:
    entries = (
        '[budgets.a]\nmodel = "faulty.py:model"\n[budgets.b]\nmodel = "nowhere.py:x"\n[budgets.c]\nmodel = "mlp"\n'
    )
    (tmp_path / "memprof.toml").write_text(f'[defaults]\noptimizers = ["sgd"]\ndevice = "24GiB"\n{entries}')
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "below").mkdir()
    done = memprof("gate", "--config", "memprof.toml")
    assert done.returncode == 2
    assert "a/sgd: the trial failed: faulty.py:model raised RuntimeError: no [weights] (faulty.py:11)" in done.stdout
    assert "b/sgd: the trial failed: there is no file nowhere.py" in done.stdout
    assert "3 checks: 2 failed, 1 passed" in done.stdout


def test_models_are_found_from_where_the_configuration_is(memprof: Command, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    shutil.copy(DATA / "sample" / "train.py", tmp_path / "repo")
    (tmp_path / "repo" / "memprof.toml").write_text(
        '[budgets.x]\nmodel = "train.py:build"\noptimizers = ["sgd"]\ndevice = "24GiB"\nbatch_size = 2\n'
        'peak_allocated_bytes = "1 GiB"\n'
    )
    done = memprof("gate", "--config", "repo/memprof.toml", "--export-json", "out.json")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "out.json").exists()  # outputs are found from where the command was given


def test_ctrl_c_keeps_what_was_finished_and_leaves_no_process(tmp_path: Path) -> None:
    defaults = (
        '[defaults]\nmodel = "mlp"\nknobs = { d_model = 64 }\nbatch_size = 2\ndevice = "cpu"\noptimizers = ["sgd"]\n'
    )
    (tmp_path / "memprof.toml").write_text(f"{defaults}[budgets.quick]\n[budgets.slow]\nsteps = 100000\n")
    command = [sys.executable, "-m", "memprof", "gate", "--export-json", "out.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with children.started(command, cwd=tmp_path, env=environment, **pipes) as child:
        family = children.until(lambda: _in_the_second_trial(child, tmp_path / "out.json"), child)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=children.SECONDS)
        assert children.survivors(family) == []
    assert child.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    report = Report.load(tmp_path / "out.json")
    assert report.exit_code == 130
    assert [(figures.entry, figures.status) for figures in report.figures] == [("quick", "ok")]
    assert [verdict.entry for verdict in report.failures] == ["slow"]


def _in_the_second_trial(child: subprocess.Popen[str], saved: Path) -> list[psutil.Process]:
    """Return the fork server and the worker once the first entry is saved and a worker runs for the second."""
    family = children.family_of(child)
    running = saved.exists() and len(family) >= 2 and time.time() - family[-1].create_time() > 1
    return family if running else []
