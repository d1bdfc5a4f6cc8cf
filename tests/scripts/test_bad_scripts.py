"""Scripts that cannot be run: one sentence each that names the place, and nothing that hangs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import memprof
from memprof.errors import ExitCode, MemprofError
from memprof.workers.launcher import Launcher
from memprof.workers.progress import Progress

TRAIN = """
import torch
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def step():
    optimizer.zero_grad()
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
"""
ON = {"cpu": "", "rtx-4090": "import torch\ntorch.set_default_device('cuda')\n"}
BAD = {
    "def train(:\n": r"script\.py:1: .* is no Python program",
    "import sys\nsys.exit('no data')\n": r"left by sys\.exit\('no data'\) \(.*script\.py:2\)",
    "import sys\nsys.exit()\n": r"ended without a training step: it constructed no optimizer",
    "name = input('name? ')\n": r"asks for input \(.*script\.py:1\)",
    "import package_that_is_not_there\n": r"needs the package 'package_that_is_not_there' \(.*script\.py:1\)",
    "open('missing.csv')\n": r"raised FileNotFoundError: .*missing\.csv.* \(.*script\.py:1\)",
    "print('x' * 100)\n": r"ended without a training step",
    TRAIN: r"constructed SGD \(.*script\.py:4\) and took no step with it",
    TRAIN + "step()\nraise KeyError('weights')\n": r"raised KeyError: 'weights' \(.*script\.py:10\)",
    "while True:\n    pass\n": r"still running in .*script\.py:[12] when 2 s were over, before its first training step",
    "import time\ntime.sleep(60)\n": r"still running in .*script\.py:2 when 2 s were over",
    "try:\n    while True: pass\nexcept Exception: pass\n": r"still running in .*script\.py:2",
}


@pytest.mark.parametrize("device", ["cpu", "rtx-4090"])
@pytest.mark.parametrize("source", BAD)
def test_one_sentence_with_the_place(launcher: Launcher, tmp_path: Path, source: str, device: str) -> None:
    path = tmp_path / "script.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(MemprofError, match=BAD[source]) as caught:
        memprof.run(path, device=device, timeout=2, launcher=launcher)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"script": "missing.py"}, "cannot read missing.py: No such file"),
        ({"script": "."}, "is a folder"),
        ({"module": "package_that_is_not_there"}, "there is no module 'package_that_is_not_there' to run"),
        ({}, "name the script to run"),
        ({"script": "a.py", "module": "a"}, "name the script to run"),
        ({"script": "a.py", "steps": 1}, "give 2 or more"),
        ({"script": "a.py", "timeout": 0}, "above 0"),
        ({"script": "a.py", "optimizers": []}, "no optimizer"),
        ({"script": "a.py", "optimizers": ["as-is", "as-is"]}, "given twice"),
        ({"script": "a.py", "optimizers": ["as-is,lr=1"]}, "takes no options"),
        ({"script": "a.py", "optimizers": ["sm3"], "reference": "adam"}, "not among the optimizers"),
    ],
)
def test_arguments(launcher: Launcher, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(MemprofError, match=sentence) as caught:
        memprof.run(device="cpu", launcher=launcher, **options)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("device", ["cpu", "rtx-4090"])
def test_a_script_that_catches_everything_is_ended_all_the_same(
    launcher: Launcher, tmp_path: Path, device: str
) -> None:
    path = tmp_path / "stubborn.py"
    path.write_text(
        ON[device] + TRAIN + "while True:\n    try:\n        step()\n    except BaseException:\n        break\n"
    )
    (found,) = memprof.run(path, device=device, steps=3, launcher=launcher).runs
    assert found.status == "ok"
    assert len(found.steps.allocated_bytes) == 3


def test_a_place_without_an_optimizer(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(TRAIN + "for _ in range(9):\n    step()\n")
    with pytest.raises(MemprofError, match=r"no optimizer of the script is 1: 0 is SGD \(.*script\.py:4\)"):
        memprof.run(path, device="cpu", optimizers=["sm3@1"], launcher=launcher)


def test_a_script_that_ends_by_itself(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(ON["rtx-4090"] + TRAIN + "step()\nstep()\n")
    (found,) = memprof.run(path, device="rtx-4090", launcher=launcher).runs
    assert any("ended by itself after 2 training steps" in note for note in found.notes)
    path.write_text(TRAIN + "step()\nstep()\n")
    (measured,) = memprof.run(path, device="cpu", launcher=launcher).runs
    assert measured.breakdown is None
    assert any(note.endswith("operator by operator: --steps 2 follows the last.") for note in measured.notes)
    (followed,) = memprof.run(path, device="cpu", steps=2, launcher=launcher).runs
    assert followed.breakdown is not None


LOOP = TRAIN + "for _ in range(9):\n    step()\n"


@pytest.mark.parametrize("source", [LOOP, LOOP.replace("nn.Linear(4, 4)", "nn.Linear(4, 4, device='cpu')")])
def test_a_script_that_moves_nothing_to_the_gpu(launcher: Launcher, tmp_path: Path, source: str) -> None:
    path = tmp_path / "script.py"
    path.write_text(source)
    with pytest.raises(MemprofError, match=r"nothing on rtx-4090: what SGD \(.*script\.py:4\) trains is on the CPU;"):
        memprof.run(path, device="rtx-4090", launcher=launcher)


def test_a_script_that_trains_beside_the_gpu(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("import torch\nforgotten = torch.ones(99, device='cuda')\n" + LOOP)
    (found,) = memprof.run(path, device="rtx-4090", launcher=launcher).runs
    assert any("trains is on the CPU and not on rtx-4090" in note for note in found.notes)
    path.write_text(LOOP.replace("4)", "4, device='cuda')"))
    (found,) = memprof.run(path, device="rtx-4090", launcher=launcher).runs
    assert not any("trains is on" in note for note in found.notes)


@pytest.mark.parametrize("device", ["cpu", "rtx-4090"])
def test_progress_names_step_phase_and_peak(launcher: Launcher, tmp_path: Path, device: str) -> None:
    path = tmp_path / "script.py"
    pause = "import time\nforward = model.forward\ndef late(x):\n    time.sleep(0.35)\n    return forward(x)\n"
    path.write_text(ON[device] + TRAIN + pause + "model.forward = late\nfor _ in range(2):\n    step()\n")
    told: list[Progress] = []
    memprof.run(path, device=device, steps=2, launcher=launcher, on_progress=told.append)
    assert {1, 2} <= {each.step for each in told if each.phase == "backward"}
    assert all(each.peak_bytes for each in told if each.phase == "backward")


@pytest.mark.parametrize("device", ["cpu", "rtx-4090"])
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os\nos._exit(7)\n", r"\(exit code 7\); .*script\.py had not come to a training step"),
        (
            TRAIN + "import os, signal, time\nstep()\nstep()\ntime.sleep(0.5)\nmodel(torch.randn(2, 4))\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n",
            r"\(SIGKILL\); .*script\.py was last heard of in step \d, ",
        ),
    ],
)
def test_a_script_that_ends_its_process_is_a_row_that_says_where(
    launcher: Launcher, tmp_path: Path, device: str, source: str, reason: str
) -> None:
    path = tmp_path / "script.py"
    path.write_text(ON[device] + source, encoding="utf-8")
    (run,) = memprof.run(path, device=device, launcher=launcher).runs
    assert run.status == "failed"
    assert re.search(reason, run.reason)
