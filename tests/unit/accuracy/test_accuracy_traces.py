"""Predicted allocations of measured runs, replayed: what real GPUs took, to within 2 MiB (NVML's granularity)."""

from __future__ import annotations

import pytest

from memprof.devices.catalog import find_device
from tests.accuracy.xmem.traces import read_traces, reserved_bytes
from tests.accuracy.xmem.truth import read_rows

ROWS = {row.name: row for row in read_rows()}
TRACES = read_traces()
MIB = 2**20


@pytest.mark.parametrize("name", TRACES)
def test_real_gpus_took_what_is_predicted(name: str) -> None:
    row = ROWS[name]
    late = 0 if row.zero_grad is None else find_device(row.device).late_bytes  # see predictions._late
    predicted = reserved_bytes(TRACES[name], falling=True) + late
    tolerance = 2 * MIB if row.zero_grad is not None else 6 * MIB
    assert predicted == pytest.approx(row.truth_bytes, abs=tolerance)


@pytest.mark.parametrize("name", ["EleutherAI/gpt-neo-125M Adam b9 z1 rtx-4060", "T5-small AdamW b29 z- rtx-4060"])
def test_rising_addresses_do_not_explain_them(name: str) -> None:
    rising = reserved_bytes(TRACES[name], falling=False)
    assert rising > ROWS[name].truth_bytes + 200 * MIB
