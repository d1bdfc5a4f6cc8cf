"""Where a step is measured again and needs something else, the report says so."""

from __future__ import annotations

from pathlib import Path

import pytest

import memprof
from memprof.measurement.meter import repeatability_note
from memprof.workers.launcher import Launcher

MIB = 2**20
# Each batch is longer than the one before, as padding to the longest text makes them.
UNEVEN = """
import itertools
import torch
from torch import nn
from memprof import Workload

def build(grows: bool = True) -> Workload:
    lengths = itertools.count(64, 64) if grows else itertools.repeat(64)
    return Workload(
        model=lambda: nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 1)),
        batch=lambda batch_size: torch.randn(batch_size, next(lengths), 32),
        loss=lambda model, batch: model(batch).mean(),
    )
"""


@pytest.mark.parametrize("peaks", [[1], [1, 9], [1, 9, 9], [9, 1, 1, 1]])
def test_nothing_is_said_of_steps_that_are_alike(peaks: list[int]) -> None:
    assert repeatability_note(peaks) == []


def test_the_difference_is_said_with_its_size() -> None:
    (note,) = repeatability_note([1, 100 * MIB, 99 * MIB, 100 * MIB])
    assert "99.00 MiB to 100.00 MiB, 1 %" in note


@pytest.mark.parametrize("grows", [True, False])
def test_uneven_batches_are_noted_in_the_report_and_even_ones_are_not(
    launcher: Launcher, tmp_path: Path, grows: bool
) -> None:
    file = tmp_path / "uneven.py"
    file.write_text(UNEVEN)
    options = {"batch_size": 2, "optimizers": ["sgd"], "device": "cpu", "fit": False, "launcher": launcher}
    result = memprof.compare(f"{file}:build", knobs={"grows": grows}, **options)
    (run,) = result.runs
    assert run.status == "ok", run.reason
    assert (run.steps.allocated_bytes[-1] > run.steps.allocated_bytes[1]) == grows
    assert ("Measured again, the peak differs" in result.to_markdown()) == grows
