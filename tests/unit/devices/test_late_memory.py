"""What a training adds to the CUDA context: the figures that the rule was read from."""

from __future__ import annotations

import pytest

from memprof.devices.catalog import find_device
from memprof.devices.context import LATE_WITHIN_BYTES, late_bytes, threads_per_sm


@pytest.mark.parametrize(("device", "mebibytes"), [("rtx-4060", 30), ("rtx-3060", 34), ("a100-40gb", 94)])
def test_within_the_granularity_of_what_was_seen(device: str, mebibytes: int) -> None:
    found = find_device(device)
    late = late_bytes(found.sm_count, found.compute_capability)
    assert late == pytest.approx(mebibytes * 2**20, abs=LATE_WITHIN_BYTES)


@pytest.mark.parametrize(
    ("capability", "threads"), [((7, 5), 1024), ((8, 0), 2048), ((8, 6), 1536), ((9, 0), 2048), ((12, 0), 1536)]
)
def test_threads_of_a_multiprocessor(capability: tuple[int, int], threads: int) -> None:
    assert threads_per_sm(capability) == threads
