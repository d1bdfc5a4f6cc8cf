"""What kernels of this CPU take for themselves: asked for by running them once, checked against the recorder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memprof.measurement.record.profiler import ProfilerRecorder
from memprof.prediction.cpu import kernels as cpu_workspaces
from memprof.prediction.cpu.kernel_recorder import kernel_events
from memprof.prediction.cpu.kernels import CpuWorkspaces, steps_of
from memprof.prediction.fake.event_log import EventLog, Steps
from memprof.trace.events import Allocation, Entry, Free

aten = torch.ops.aten
HALF = torch.bfloat16


def convolution(batch: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    image, weight = torch.zeros(batch, 32, 16, 16, dtype=dtype), torch.zeros(32, 32, 3, 3, dtype=dtype)
    return image, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1


def levels(sizes: list[int]) -> list[int]:
    """Return the bytes that live after each event."""
    total, found = 0, []
    for size in sizes:
        total += size
        found.append(total)
    return found


def as_sizes(entries: list[Entry]) -> list[int]:
    living: dict[int, int] = {}
    sizes: list[int] = []
    for entry in entries:
        if isinstance(entry, Allocation):
            living[entry.address] = entry.size
            sizes.append(entry.size)
        elif isinstance(entry, Free) and entry.address in living:
            sizes.append(-living.pop(entry.address))
    return sizes


def played(steps: Steps, outputs: list[int]) -> list[int]:
    """Return the sizes that a log sees of a kernel with these steps and outputs."""
    log = EventLog()
    storages = []

    def make() -> None:
        for size in outputs:
            storage = torch.UntypedStorage(1)
            storages.append(storage)
            log.allocated(storage, log.new_address(), size)

    log.scratch(steps, make)
    return as_sizes(log.entries(0))


CALLS = {
    "convolution": (aten.convolution.default, convolution(4)),
    "convolution in halves": (aten.convolution.default, convolution(4, HALF)),
    "product in halves": (aten.mm.default, (torch.zeros(48, 64, dtype=HALF), torch.zeros(96, 64, dtype=HALF).t())),
    "sum of two types": (aten.add.Tensor, (torch.zeros(64, 64), torch.zeros(64, 64, dtype=HALF))),
    "mean of halves": (aten.mean.default, (torch.zeros(64, 64, dtype=HALF),)),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_takes_what_the_profiler_of_trials_sees(name: str) -> None:
    func, args = CALLS[name]
    recorder = ProfilerRecorder("cpu")
    func(*args)
    recorder.start()
    output = func(*args)
    seen = as_sizes(recorder.stop())
    assert kernel_events(func, args, {}) == seen
    steps = CpuWorkspaces().scratch(func, args, {})
    assert levels(played(steps, [output.untyped_storage().nbytes()]))[: len(seen)] == levels(seen)


FLOATS, WHOLE = (torch.float32, torch.float64, torch.bfloat16), (torch.int64, torch.bool)
NUMBERS = [
    *((func, dtype, 3) for func in (aten.add_.Tensor, aten.div_.Tensor) for dtype in FLOATS),
    *((aten.mul_.Tensor, torch.int64, number) for number in (3, True)),
    *((func, dtype, 0.5) for func in (aten.mul.Tensor, aten.div.Tensor, aten.eq.Scalar) for dtype in (*FLOATS, *WHOLE)),
    *((func, dtype, 3) for func in (aten.add.Tensor, aten.div.Tensor, aten.gt.Scalar) for dtype in (*FLOATS, *WHOLE)),
    *((aten.rsub.Scalar, dtype, 1) for dtype in (*FLOATS, torch.int64)),
    *((aten.mul.Scalar, dtype, 0.5) for dtype in (*FLOATS, *WHOLE)),
    *((aten.div.Tensor, dtype, torch.ones((), dtype=torch.int64)) for dtype in (*FLOATS, torch.int32)),
]


@pytest.mark.parametrize(("func", "dtype", "number"), NUMBERS)
def test_a_number_in_arithmetic_takes_what_the_profiler_of_trials_sees(func: Any, dtype: Any, number: Any) -> None:
    """Its tensor and what it is cast to; a copy of the other operand where that is cast."""
    tensor = torch.zeros(40, 5, dtype=dtype)
    recorder = ProfilerRecorder("cpu")
    recorder.start()
    output = func(tensor, number)
    seen = as_sizes(recorder.stop())
    outputs = [] if output is tensor else [output.untyped_storage().nbytes()]
    said = levels(played(CpuWorkspaces().scratch(func, (tensor, number), {}), outputs))
    assert max(said) == max(levels(seen))


def test_a_number_is_asked_for_once_whatever_its_value_and_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(cpu_workspaces, "kernel_events", lambda *call: calls.append(call) or [8, 4, -4, -8])
    workspaces = CpuWorkspaces()
    for size in range(1, 5):
        assert workspaces.scratch(aten.add_.Tensor, (torch.zeros(size), size / 2), {}) == [8, 4, -2, -1]
    assert len(calls) == 1


@pytest.mark.parametrize(("func", "rest"), [(aten.mean.default, ()), (aten.mean.dim, ([-1], True))])
def test_a_mean_divides_by_a_number(func: Any, rest: tuple[Any, ...]) -> None:
    assert CpuWorkspaces().scratch(func, (torch.zeros(40, 5), *rest), {}) == [None, 8, 4, -2, -1]


def test_two_outputs_live_from_where_each_is_made() -> None:
    """100 and 40 are outputs; 7 lives between them, so the peak has the first output and not the second."""
    events = [100, 7, -7, 3, 40, -3]
    assert max(levels(played(steps_of(events), [100, 40]))) == max(levels(events)) == 143
    assert max(levels(played(steps_of([100, 70, -70, 40]), [100, 40]))) == 170


def test_nothing_taken_is_no_steps() -> None:
    assert steps_of([100]) == []
    assert steps_of([]) == []


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=12), st.randoms())
def test_steps_reach_the_peak_and_end_of_the_events_that_they_are_made_of(blocks: Any, draw: Any) -> None:
    """Blocks are taken in order; those marked are given back at some later moment."""
    events: list[int] = []
    waiting: list[int] = []
    for size, is_scratch in blocks:
        events.append(size)
        waiting += [size] if is_scratch else []
        while waiting and draw.random() < 0.5:
            events.append(-waiting.pop(draw.randrange(len(waiting))))
    events += [-size for size in waiting]
    outputs = sorted(size for size, is_scratch in blocks if not is_scratch)
    seen = played(steps_of(events), outputs)
    assert max(levels(seen), default=0) == max(levels(events), default=0)
    assert sum(seen) == sum(outputs)


def test_large_batches_are_extended_from_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    known = CpuWorkspaces()
    exact = known.scratch(aten.convolution.default, convolution(32), {})
    assert exact
    assert known.doubts == []
    monkeypatch.setattr(cpu_workspaces, "MOST_BYTES", 600_000)  # 12 images and the weight
    extended = CpuWorkspaces()
    assert extended.scratch(aten.convolution.default, convolution(32), {}) == exact
    assert extended.doubts == [
        "aten::convolution: what their kernels take for themselves is extended from smaller batches."
    ]


def test_what_is_too_large_is_named_and_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_workspaces, "MOST_PRODUCTS", 1)
    workspaces = CpuWorkspaces()
    assert workspaces.scratch(aten.convolution.default, convolution(4), {}) == []
    assert workspaces.scratch(aten.bmm.default, (torch.zeros(2, 3, 3, dtype=HALF),) * 2, {}) == []
    doubt = "what their kernels take for themselves is not counted: they are too large to try."
    assert workspaces.doubts == [f"aten::bmm, aten::convolution: {doubt}"]


def test_a_product_in_float32_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_workspaces, "kernel_events", lambda *call: pytest.fail("tried"))
    square = torch.zeros(4, 4)
    assert CpuWorkspaces().scratch(aten.mm.default, (square, square), {}) == []


def test_nothing_is_said_while_another_profiler_runs() -> None:
    func, args = CALLS["mean of halves"]
    with torch.profiler.profile():
        assert kernel_events(func, args, {}) is None


def test_a_geometry_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(cpu_workspaces, "kernel_events", lambda *call: calls.append(call) or [8, 4, -4])
    workspaces = CpuWorkspaces()
    for _ in range(3):
        assert workspaces.scratch(aten.convolution.default, convolution(2), {}) == [None, 4, -1]
    assert len(calls) == 1
