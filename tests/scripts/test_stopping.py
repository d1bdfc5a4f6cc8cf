"""When a script is stopped, and what is said of what it did not come to."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

import memprof
from memprof.documents.comparison import Run
from memprof.report.content.summary import summarize
from memprof.workers.launcher import Launcher
from tests import children
from tests.cli.conftest import ROOT

BOTH = pytest.mark.parametrize("device", ["cpu", "rtx-4090"])
SIZES = """
import torch
from torch import nn
sizes = {sizes}
device = "cuda" if torch.cuda.is_available() else "cpu"
model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to(device)
optimizer = torch.optim.AdamW(model.parameters())
for step, size in enumerate(sizes):
    model(torch.randn(size, 64, device=device)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    if step == 5:
        with torch.no_grad():
            model(torch.randn(4096, 64, device=device))
    if step == 6:
        torch.save(model.state_dict(), "model.pt")
print("the end")
"""


def trained(launcher: Launcher, folder: Path, sizes: list[int], **options: object) -> tuple[Run, str]:
    script = folder / "script.py"
    script.write_text(SIZES.format(sizes=sizes))
    made = memprof.run(script, launcher=launcher, **options)
    return made.runs[0], " ".join(summarize(made))


@BOTH
@pytest.mark.parametrize(
    ("sizes", "steps"),
    [([8] * 20, 3), ([8, 16, 8, 8, 8, 8], 4), ([8, 9, 10, 11, 12, 12, 12, 12], 6), ([*range(8, 40)], 8)],
)
def test_it_is_stopped_when_two_steps_allocate_alike(
    launcher: Launcher, tmp_path: Path, sizes: list[int], steps: int, device: str
) -> None:
    found, _ = trained(launcher, tmp_path, sizes, device=device)
    assert found.status == "ok", found.reason
    # Measured, the step that is followed operator by operator comes after those that were found alike.
    assert len(found.steps.allocated_bytes) == (min(steps + 1, 8) if device == "cpu" else steps)
    never = [note for note in found.notes if "never became alike: each of 8 allocated" in note]
    assert len(never) == (steps == 8)


@BOTH
def test_what_the_run_did_not_come_to_is_said(launcher: Launcher, tmp_path: Path, device: str) -> None:
    def ending(**options: object) -> tuple[str, str]:
        found, summary = trained(launcher, tmp_path, [8] * 9, device=device, **options)
        return "".join(note for note in found.notes if "before the script" in note), summary

    notes, summary = ending()
    assert (
        f"ended after {4 if device == 'cpu' else 3} training steps, before the script evaluated or saved anything"
        in notes
    )
    assert "a larger --steps shows" in notes
    assert "valuation" not in summary
    assert "aving" not in summary
    notes, summary = ending(steps=7)
    assert "after 7 training steps, before the script saved anything" in notes
    assert "Evaluation sets the peak" in summary
    notes, summary = ending(steps=8)
    assert notes == ""
    notes, summary = ending(steps=20)  # it ends by itself
    assert notes == ""
    assert "Evaluation sets the peak" in summary


def test_evaluation_and_saving_below_the_peak(launcher: Launcher, tmp_path: Path) -> None:
    _, summary = trained(launcher, tmp_path, [4096] * 9, device="cpu", steps=8)
    assert "Evaluation (up to " in summary
    assert "and saving (up to " in summary
    assert summary.endswith(" do not set the peak.")


@BOTH
def test_loader_workers_are_noted_once(launcher: Launcher, tmp_path: Path, device: str) -> None:
    script = Path(__file__).parents[1] / "data" / "scripts" / "evaluates.py"
    (found,) = memprof.run(script, [str(tmp_path)], device=device, steps=4, launcher=launcher).runs
    (note,) = [note for note in found.notes if "loader worker" in note]
    assert note.startswith("The 2 loader workers of ")
    assert "evaluates.py:20 ran in the script's own process" in note


def test_what_a_script_prints_is_dimmed_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SIZES.format(sizes=[8] * 2))
    command = [sys.executable, "-m", "memprof", "run", "--device", "cpu", "script.py"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    try:
        done = children.run(command, cwd=tmp_path, env=environment, stderr=theirs)
        os.set_blocking(ours, False)
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "\x1b[2mthe end\x1b[22m" in shown
    assert "the end" not in done.stdout
    plain = children.run(command, cwd=tmp_path, env=environment)
    assert "the end\n" in plain.stderr
    assert "\x1b" not in plain.stderr
