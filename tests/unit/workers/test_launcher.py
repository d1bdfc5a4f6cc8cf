"""Worker processes: cheap to start, isolated, and none left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from memprof.documents.jobs import Findings, Inquiry, Outcome, Step, Trial
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.workers.death import WorkerDiedError
from memprof.workers.launcher import Launcher
from tests import children

FAULTY = Path(__file__).parents[2] / "data" / "models" / "faulty.py"


def trial(attribute: str = "good", optimizer: str = "sgd", **options) -> Trial:
    return Trial(
        workload=WorkloadSpec(model=f"{FAULTY}:{attribute}"),
        optimizer=parse_optimizer(optimizer),
        device="cpu",
        batch_size=4,
        recipe=Recipe(),
        **options,
    )


def test_jobs_run_one_after_the_other_in_processes_of_their_own(launcher: Launcher):
    steps: list[Step] = []
    found = launcher.run(Inquiry(workload=WorkloadSpec(model="mlp"), optimizers=[], devices=["cpu"]))
    assert isinstance(found, Findings)
    assert found.scale == "n_layers"
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        launcher.run(trial(optimizer=f"{FAULTY}:Fatal"))
    outcome = launcher.run(trial(), steps.append)
    assert isinstance(outcome, Outcome)
    assert outcome.run.status == "ok"
    assert [(step.stage, step.step) for step in steps] == [("build", 0)] + [("step", n) for n in (1, 2, 3, 4)]


def test_another_server_takes_the_place_of_one_that_was_killed():
    with Launcher() as launcher:
        lives = launcher.run(trial(optimizer=f"{FAULTY}:Parricide"))
        assert isinstance(lives, Outcome)  # the worker has the answer, and needs no server any more
        assert lives.run.status == "ok"
        with pytest.raises(WorkerDiedError, match="ended from outside"):
            launcher.run(trial(optimizer=f"{FAULTY}:Parricide,both=True"))
        after = launcher.run(trial())
        assert isinstance(after, Outcome)
        assert after.run.status == "ok"


def test_output_of_the_users_code_goes_to_stderr(capfd: pytest.CaptureFixture[str]):
    with Launcher() as launcher:
        launcher.run(trial("chatty"))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "this line must not reach stdout" in captured.err


def test_memory_limit_of_a_trial_holds(launcher: Launcher):
    model = WorkloadSpec(model="mlp", knobs={"d_model": 8192})
    outcome = launcher.run(trial().model_copy(update={"workload": model, "limit_bytes": 4 << 20}))
    assert isinstance(outcome, Outcome)
    assert outcome.run.status == "oom"


@pytest.mark.parametrize(("how", "ranks"), [(signal.SIGINT, 1), (signal.SIGKILL, 2)])
def test_no_process_is_left_when_the_parent_ends(how: signal.Signals, ranks: int):
    recipe = {"strategy": "ddp", "world_size": ranks} if ranks > 1 else {}
    script = textwrap.dedent(
        f"""
        import memprof
        memprof.compare({str(FAULTY) + ":good"!r}, optimizers=[{str(FAULTY) + ":Slow"!r}], fit=False,
                        recipe=memprof.Recipe(**{recipe}),
                        on_progress=lambda p: print(p.stage, p.step, flush=True))
        """
    )
    with children.started([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        assert any("step 1" in line for line in parent.stdout)
        family = children.family_of(parent)
        assert len(family) == 2 + (ranks if ranks > 1 else 0)  # the fork server, the worker and its ranks
        parent.send_signal(how)
        parent.wait()
        assert children.survivors(family) == []


def in_child(body: str) -> str:
    return children.run([sys.executable, "-c", body]).stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the high-water mark can be reset on Linux only")
def test_high_water_mark_is_the_kernels_and_can_be_reset():
    body = f"""
from memprof.measurement.process_memory import peak_rss_bytes, reset_peak_rss
hoard = bytearray({64 << 20})
high = peak_rss_bytes()
del hoard
assert reset_peak_rss()
assert peak_rss_bytes() < high - {48 << 20}
hoard = bytearray({64 << 20})
assert peak_rss_bytes() > high - {8 << 20}
print("reset")
"""
    assert in_child(body) == "reset\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says how much a process has")
def test_limit_stops_an_allocation():
    body = f"""
from memprof.measurement.process_memory import data_bytes, limit_memory
assert limit_memory({512 << 20}, data_bytes())
bytearray({400 << 20})
try:
    bytearray({4 << 30})
except MemoryError:
    print("refused")
"""
    assert in_child(body) == "refused\n"
