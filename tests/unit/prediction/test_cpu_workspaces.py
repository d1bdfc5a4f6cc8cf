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
from memprof.prediction.cpu.kernels import FILLS, CpuWorkspaces, steps_of
from memprof.prediction.fake.event_log import EventLog, Steps
from memprof.prediction.fake.tensors import tensors_in
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
    "product": (aten.mm.default, (torch.zeros(48, 64), torch.zeros(64, 96))),
    "product of a strided matrix": (aten.mm.default, (torch.zeros(48, 128)[:, ::2], torch.zeros(64, 96))),
    "transposed copy": (aten.copy_.default, (torch.zeros(64, 80), torch.zeros(80, 64).t())),
    "sort": (aten.sort.default, (torch.zeros(8, 40),)),
    "sort by columns": (aten.sort.default, (torch.zeros(40, 8), 0)),
    "k-th value": (aten.kthvalue.default, (torch.zeros(8, 40), 3)),
    "mode": (aten.mode.default, (torch.zeros(8, 40),)),
    "product along a dimension": (aten.prod.dim_int, (torch.zeros(8, 40, dtype=HALF), 1)),
    "softmax of halves": (aten._softmax.default, (torch.zeros(8, 40, dtype=HALF), 0, False)),
    "matrix exponential": (aten.linalg_matrix_exp.default, (torch.zeros(4, 6, 6),)),
    "inverse": (aten.linalg_inv_ex.default, (torch.eye(6),)),
    "factorisation": (aten.linalg_cholesky_ex.default, (torch.eye(6),)),
    "eigenvalues": (aten._linalg_eigh.default, (torch.eye(6), "L", True)),
    "Fourier transform": (aten._fft_r2c.default, (torch.zeros(8, 40), [1], 0, True)),
    "bag of embeddings": (
        aten._embedding_bag.default,
        (torch.zeros(50, 8), torch.zeros(12, dtype=torch.int64), torch.arange(0, 12, 4), False, 1),
    ),
    "gradient of embeddings": (
        aten.embedding_dense_backward.default,
        (torch.zeros(12, 8), torch.zeros(12, dtype=torch.int64), 50, -1, True),
    ),
    "scattered sum": (
        aten.scatter_add_.default,
        (torch.zeros(64, 64, dtype=HALF), 0, torch.zeros(5, 64, dtype=torch.int64), torch.zeros(5, 64, dtype=HALF)),
    ),
    "accumulated entries": (
        aten.index_put_.default,
        (torch.zeros(50, 8), [torch.zeros(12, dtype=torch.int64)], torch.zeros(12, 8), True),
    ),
    "draw": (aten.multinomial.default, (torch.ones(8, 40), 3, True)),
    "dropout": (aten.native_dropout.default, (torch.zeros(8, 40), 0.5, True)),
    "list": (aten._foreach_addcdiv_.Scalar, ([torch.ones(4), torch.ones(3, 5)],) * 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_takes_what_the_profiler_of_trials_sees(name: str) -> None:
    """Of kernels of every kind, so that no list of those that take something can be forgotten."""
    func, args = CALLS[name]
    recorder = ProfilerRecorder("cpu")
    func(*args)
    recorder.start()
    output = func(*args)
    seen = as_sizes(recorder.stop())
    assert kernel_events(func, args, {}) == seen
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(args)}
    made = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors_in((output,))}
    outputs = [size for address, size in made.items() if address not in known and size]
    workspaces = CpuWorkspaces()
    said = levels(played(workspaces.scratch(func, args, {}), outputs))
    assert max(said, default=0) == max(levels(seen), default=0)
    assert workspaces.doubts == []


# Overloads that are never asked, called with arguments that would have them take something if anything did.
NEVER_ASKED: dict[Any, tuple[Any, ...]] = {
    aten.zeros_like.default: (torch.zeros(40, 5).t(),),
    aten.ones_like.default: (torch.zeros(40, 5).t(),),
    aten.full_like.default: (torch.zeros(40, 5).t(), 0.5),
    aten.new_zeros.default: (torch.zeros(3), [40, 5]),
    aten.new_ones.default: (torch.zeros(3), [40, 5]),
    aten.new_full.default: (torch.zeros(3), [40, 5], 0.5),
    aten.zero_.default: (torch.zeros(40, 10)[:, ::2],),
    aten.fill_.Scalar: (torch.zeros(40, 10)[:, ::2], 0.5),
}
MADE_OF_NOTHING = {
    aten.zeros.default: ([40, 5],),
    aten.ones.default: ([40, 5],),
    aten.full.default: ([40, 5], 0.5),
    aten.arange.start_step: (0, 200, 3),
    aten.linspace.default: (0, 1, 200),
    aten.eye.default: (40,),
    aten.rand.default: ([40, 5],),
    aten.randn.default: ([40, 5],),
    aten.randint.low: (0, 7, [40, 5]),
    aten.randperm.default: (200,),
}


def test_what_is_never_asked_takes_no_more_than_a_number() -> None:
    assert set(NEVER_ASKED) == FILLS
    for func, args in {**NEVER_ASKED, **MADE_OF_NOTHING}.items():
        assert not CpuWorkspaces().takes(func), func
        for dtype in (torch.float32, HALF, torch.float64):
            cast = tuple(arg.to(dtype) if isinstance(arg, torch.Tensor) else arg for arg in args)
            kwargs = {} if func in NEVER_ASKED or func in (aten.randperm.default,) else {"dtype": dtype}
            events = kernel_events(func, cast, kwargs)
            assert events is not None, func
            assert sum(size for size in events if size < 0) >= (0 if func in NEVER_ASKED else -8), func


def test_asking_leaves_random_states_as_they_are() -> None:
    generator = torch.Generator().manual_seed(3)
    before = torch.get_rng_state(), generator.get_state()
    workspaces = CpuWorkspaces()
    workspaces.scratch(aten.native_dropout.default, (torch.zeros(40, 5), 0.5, True), {})
    workspaces.scratch(aten.normal_.default, (torch.zeros(40, 5), 0.0, 1.0), {"generator": generator})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(generator.get_state(), before[1])


def test_asking_does_not_write_to_arguments() -> None:
    tensor, other = torch.ones(40, 5), torch.full((40, 5), 2.0)
    CpuWorkspaces().scratch(aten.mul_.Tensor, (tensor, other), {})
    CpuWorkspaces().scratch(aten.mul.out, (tensor, other), {"out": tensor})
    assert torch.equal(tensor, torch.ones(40, 5))
    assert torch.equal(other, torch.full((40, 5), 2.0))


def test_only_operators_of_pytorch_are_tried() -> None:
    """A collective waits for others, and a user's own may do anything."""
    with torch.library._scoped_library("unasked", "DEF") as library:
        library.define("own(Tensor x) -> Tensor")
        assert not CpuWorkspaces().takes(torch.ops.unasked.own.default)


def test_what_does_not_run_on_made_up_values_is_named() -> None:
    workspaces = CpuWorkspaces()
    assert workspaces.scratch(aten.mm.default, (torch.zeros(4, 3), torch.zeros(4, 3)), {}) == []
    doubt = "what their kernels take for themselves is not counted: they do not run on made-up values."
    assert workspaces.doubts == [f"aten::mm: {doubt}"]


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


def test_a_number_is_asked_for_once_whatever_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(cpu_workspaces, "kernel_events", lambda *call: calls.append(call) or [8, 4, -4, -8])
    workspaces = CpuWorkspaces()
    for number in range(1, 5):
        assert workspaces.scratch(aten.add_.Tensor, (torch.zeros(3), number / 2), {}) == [8, 4, -2, -1]
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


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.mm.default, (torch.empty(4096, 50_000, device="meta"), torch.empty(50_000, 768, device="meta"))),
        (aten.mm.default, (torch.empty(4096, 768, device="meta"), torch.empty(50_000, 768, device="meta").t())),
        (aten.bmm.default, (torch.empty(64, 1024, 64, device="meta"), torch.empty(64, 64, 1024, device="meta"))),
    ],
)
def test_a_large_product_is_tried_with_small_matrices(func: Any, args: Any) -> None:
    """In float32 it takes nothing here, so nothing is extended and there is no doubt."""
    workspaces = CpuWorkspaces()
    assert workspaces.scratch(func, args, {}) == []
    assert workspaces.doubts == []


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.add.Tensor, (torch.empty(1024, 8192, device="meta"), torch.empty(8192, dtype=HALF, device="meta"))),
        (aten.add.Tensor, (torch.empty(1024, 4096, device="meta"), torch.empty(1024, 4096, dtype=HALF, device="meta"))),
        (aten.mul.Tensor, (torch.empty(1024, 4096, device="meta"), 0.5)),
        (aten.copy_.default, (torch.empty(1024, 4096, device="meta"), torch.empty(4096, 1024, device="meta").t())),
        (aten._foreach_mul_.Scalar, ([torch.empty(1024, 4096, device="meta"), torch.empty(3, device="meta")], 0.5)),
    ],
)
def test_a_large_elementwise_operator_takes_what_it_took_of_little(func: Any, args: Any) -> None:
    workspaces = CpuWorkspaces()
    seen = levels(kernel_events(func, args, {}) or [])
    outputs = [] if func._schema.name.endswith("_") else [4 * args[0].numel()]
    said = levels(played(workspaces.scratch(func, args, {}, sum(outputs)), outputs))
    assert max(said, default=0) == max(seen, default=0)
    assert workspaces.doubts == []


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
