"""The CPU allocator's peak equals an independent count to the byte, and a tracked step equals an untracked one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import memprof
from tests import children

SCRIPT = Path(__file__).with_name("independent_count.py")

SMALL = {
    "mlp": ({}, 64),
    "gpt2": ({"n_layers": 2, "d_model": 64, "n_heads": 2, "seq_len": 32, "vocab_size": 500}, 3),
    "resnet50": ({"n_blocks": 1, "image_size": 64, "n_classes": 10}, 2),
    "vit-b16": ({"n_layers": 1, "d_model": 64, "n_heads": 2, "d_ff": 128, "image_size": 32}, 2),
}
OPTIMIZERS = {
    "sm3,lr=0.001": ("sm3:SM3", {"lr": 0.001}),
    "sm3,lr=0.001,momentum=0.9": ("sm3:SM3", {"lr": 0.001, "momentum": 0.9}),
    "adam": ("torch.optim:Adam", {}),
    "adam,foreach=true": ("torch.optim:Adam", {"foreach": True}),
    "adafactor": ("torch.optim:Adafactor", {}),
}


CASES = [
    (workload, optimizer)
    for workload in SMALL
    for optimizer in (OPTIMIZERS if workload == "mlp" else ["sm3,lr=0.001", "adam"])
]


@pytest.fixture(scope="module")
def independent_peaks() -> dict[tuple[str, str], list[int]]:
    """Returns the peaks of every step of every training, all counted by one process, which imports torch once."""
    trainings = [[workload, *SMALL[workload], *OPTIMIZERS[optimizer]] for workload, optimizer in CASES]
    command = [sys.executable, str(SCRIPT), json.dumps(trainings)]
    output = children.run(command).stdout
    return dict(zip(CASES, map(json.loads, output.splitlines()), strict=True))


@pytest.mark.parametrize("workload", SMALL)
def test_peak_of_every_step_equals_the_independent_count(launcher, workload: str, independent_peaks) -> None:
    knobs, batch_size = SMALL[workload]
    optimizers = [optimizer for name, optimizer in CASES if name == workload]
    options = {"knobs": knobs, "optimizers": optimizers, "fit": False, "launcher": launcher}
    for run in memprof.compare(workload, batch_size=batch_size, **options).runs:
        assert run.status == "ok", run.reason
        # The last of memprof's steps is tracked operator by operator, the script's is not.
        assert run.steps.allocated_bytes == independent_peaks[workload, run.optimizer.spec], run.optimizer.spec
        assert run.peak.allocated_bytes == max(run.steps.allocated_bytes)
