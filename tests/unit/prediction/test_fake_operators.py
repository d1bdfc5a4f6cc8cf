"""Fake tensors against real ones: the same geometry, the same storages living and dying at the same moments."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from memprof.errors import UsageError
from memprof.prediction.cpu.semantics import CpuSemantics
from memprof.prediction.fake.dispatch import FakeOperators
from memprof.prediction.fake.event_log import FIRST_ADDRESS, EventLog
from memprof.prediction.fake.known_values import is_fake
from memprof.prediction.fake.python_values import readable_in_python
from memprof.prediction.fake.value_reads import Reads
from memprof.trace.events import Allocation, Free


@contextmanager
def fakes(phase: str = "forward"):
    mode = FakeOperators(EventLog(), Reads(), CpuSemantics())
    with mode:
        mode.phase = phase
        yield mode


def made(size: int = 4, *more: int, grad: bool = False) -> Tensor:
    return torch.empty(size, *more, requires_grad=grad)


def sizes(mode: FakeOperators, start: int) -> list[int]:
    """Return what was allocated (positive) and freed (negative) since an entry."""
    known, signed = {}, []
    for index, entry in enumerate(mode.log.entries(0)):
        if isinstance(entry, Allocation):
            known[entry.address] = entry.size
            size = entry.size
        elif isinstance(entry, Free):
            size = -known.pop(entry.address)
        else:
            continue
        if index >= start:
            signed.append(size)
    return signed


OPERATIONS: dict[str, Callable[[Tensor], object]] = {
    "matmul": lambda x: x @ x.t(),
    "linear": lambda x: nn.functional.linear(x, torch.ones(3, 8), torch.ones(3)),
    "add_scalar": lambda x: x + 1,
    "promote": lambda x: (x > 0) * 2.5,
    "int_division": lambda x: x.long() / 3,
    "layer_norm": lambda x: nn.functional.layer_norm(x, (8,)),
    "softmax": lambda x: x.softmax(-1),
    "chunk": lambda x: x.chunk(2, -1),
    "expand": lambda x: x[:, None].expand(6, 5, 8).contiguous(),
    "max": lambda x: x.max(1),
    "conv": lambda x: nn.functional.conv1d(x.view(2, 3, 8), torch.ones(4, 3, 3)),
    "channels_last": lambda x: nn.functional.conv2d(
        x.view(1, 3, 4, 4).to(memory_format=torch.channels_last), torch.ones(2, 3, 3, 3)
    ),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(*(x.view(1, 1, 6, 8),) * 3),
    "embedding": lambda x: nn.functional.embedding(torch.arange(4), x),
    "cross_entropy": lambda x: nn.functional.cross_entropy(x, torch.arange(6)),
    "cat": lambda x: torch.cat((x, x[:2])),
    "mask_index": lambda x: x[torch.tensor([True, False, True, True, False, False])],
    "out": lambda x: torch.mul(x, x, out=torch.empty(0)),
    "foreach": lambda x: torch._foreach_mul([x, x[0]], 2.0),
    "pad": lambda x: nn.functional.pad(x, (1, 2)),
    "bfloat16": lambda x: x.to(torch.bfloat16) @ x.t().to(torch.bfloat16),
    "transpose_": lambda x: x.clone().t_(),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
}


def geometry(value: object) -> object:
    if isinstance(value, Tensor):
        return (*value.shape,), value.stride(), value.dtype, value.storage_offset(), value.untyped_storage().nbytes()
    assert isinstance(value, (list, tuple))
    return [geometry(item) for item in value]


@pytest.mark.parametrize("name", OPERATIONS)
def test_outputs_have_the_geometry_of_real_ones(name: str) -> None:
    real = geometry(OPERATIONS[name](torch.zeros(6, 8)))
    with fakes():
        fake = geometry(OPERATIONS[name](made(6, 8)))
    assert fake == real


def test_a_tensor_has_an_address_of_its_own_and_no_memory() -> None:
    with fakes() as mode:
        huge = torch.empty(1 << 40)  # 4 TiB
        other = huge * 2
        assert type(huge) is Tensor
        assert FIRST_ADDRESS <= huge.data_ptr() != other.data_ptr()
        assert huge[1:].untyped_storage().data_ptr() == huge.data_ptr()
        assert mode.log.live_bytes == 2 * 4 << 40
        del other
        assert mode.log.live_bytes == 4 << 40


def test_a_storage_dies_with_its_last_view() -> None:
    with fakes() as mode:
        start = len(mode.log.entries(0))
        base = made(8)
        view = base[:2]
        del base
        assert sizes(mode, start) == [32]
        del view
        assert sizes(mode, start) == [32, -32]


def test_autograd_keeps_what_it_saves_until_the_backward_pass_has_used_it() -> None:
    with fakes() as mode:
        x = made(256, grad=True)
        y = x.exp()
        z = y.sum()
        del y
        start = len(mode.log.entries(0))
        z.backward()
        del z
        assert -1024 in sizes(mode, start)  # the saved output of exp
        assert x.grad is not None
        assert x.grad.shape == (256,)


def test_gradients_of_a_tensor_used_twice_are_summed_in_place() -> None:
    def peak(in_place: bool) -> int:
        with fakes("backward") as mode:
            if not in_place:
                mode.accumulation.is_in_place = lambda func, args: False  # type: ignore[method-assign]
            x = made(1 << 20, grad=True)
            y = x * 2
            z = (y * 3 + y * 5).sum()
            before = mode.log.peak_bytes = mode.log.live_bytes
            z.backward()
            return mode.log.peak_bytes - before

    # A few bytes are those of the numbers 3 and 5.
    assert peak(in_place=False) - peak(in_place=True) == pytest.approx(4 << 20, abs=12)


def test_a_sum_that_somebody_else_holds_is_not_changed() -> None:
    class Add(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            doubled = grad * 2
            total = doubled + grad
            assert total.data_ptr() != doubled.data_ptr()
            return total

    with fakes("backward"):
        x = made(16, grad=True)
        Add.apply(x).sum().backward()


def test_the_gradient_of_gather_fills_zeros_in_place() -> None:
    with fakes("backward") as mode:
        x = made(1000, 4, grad=True)
        y = x.gather(0, torch.zeros(1, 4, dtype=torch.int64)).sum()
        mode.log.peak_bytes = before = mode.log.live_bytes
        y.backward()
        assert mode.log.peak_bytes - before < 2 * 16000


def test_small_known_values_are_real() -> None:
    with fakes():
        mask = torch.ones(2, 8, dtype=torch.int64)
        assert bool((mask == 1).all())
        mask[1, 4:] = 0
        assert mask.sum().item() == 12
        assert (torch.arange(5) * 2).tolist() == [0, 2, 4, 6, 8]
        assert [x.item() for x in torch.linspace(0, 1, 3)] == [0.0, 0.5, 1.0]


def test_values_written_by_fakes_are_forgotten() -> None:
    with fakes():
        known = torch.zeros(4)
        view = known[:2]
        assert view.tolist() == [0, 0]
        known.add_(made(4))
        assert is_fake(view)
        assert 0.9 < view[0].item() <= 1.0  # and not 0


def test_what_is_unknown_of_a_storage_ends_with_it() -> None:
    with fakes():
        for _ in range(50):  # memory of the first is given to others
            known = torch.zeros(16)
            assert known.sum().item() == 0
            known.add_(made(16))
            assert is_fake(known)


def test_large_known_values_are_fake() -> None:
    with fakes():
        assert is_fake(torch.zeros(1 << 20))
        assert not is_fake(torch.zeros(1 << 10))
        assert not is_fake(torch.randint(9, (1 << 20,)))
        assert is_fake(torch.ones(2048, 2048, dtype=torch.bool).tril())


@pytest.mark.parametrize(
    ("read", "answer"),
    [
        (lambda x: float(x.sum()), 1.0),
        (lambda x: int(x.sum()), 1),
        (lambda x: bool((x > 0).any()), False),
        (lambda x: bool((x > 0).all()), True),
        (lambda x: torch.equal(x, x + 1), False),
        (lambda x: bool(x.isnan().any()), False),
        (lambda x: bool(torch.isnan(x.sum())), False),
        (lambda x: bool(torch.isinf(x).sum() > 0), False),
        (lambda x: bool(torch.isfinite(x).all()), True),
        (lambda x: bool(torch.isfinite(x.sum())), True),
        (lambda x: bool(x.sum() < math.inf), True),
        (lambda x: bool(x.sum() != x.sum()), False),
        (lambda x: math.isfinite(x.norm().item()), True),
        (lambda x: (x > 0).sum().item(), 1),
        (lambda x: tuple(x[x > 0].shape), (8,)),
        (lambda x: tuple(x.view(2, 4)[x.view(2, 4) > 0].shape), (8,)),
        (lambda x: tuple(x.unique().shape), (8,)),
        (lambda x: tuple(x.view(2, 4).nonzero().shape), (8, 2)),
        (lambda x: tuple(x.masked_select(x > 0).shape), (8,)),
        (lambda x: x.numpy().tolist(), [1.0] * 8),
        (lambda x: x.view(2, 4).tolist(), [[1.0] * 4] * 2),
    ],
)
def test_what_a_model_reads_is_made_up_and_noted(read: Callable[[Tensor], object], answer: object) -> None:
    with fakes() as mode, readable_in_python(mode):
        assert read(made(8)) == answer
        (note,) = mode.reads.guesses
        assert note.startswith(f"{Path(__file__).relative_to(Path.cwd())}:")
        assert "depend" in note


def test_numbers_that_are_read_fall_as_a_loss_does() -> None:
    with fakes():
        best = math.inf
        for _ in range(5):
            loss = made(8).mean().item()
            assert 0.9 < loss < best
            best = loss


def test_the_note_says_whether_the_program_branches() -> None:
    with fakes() as mode:
        x = made(8)
        if x.sum() > 2:
            raise AssertionError
        assert float(x.sum())
        _ = x.sum().item()
        branching = {note for note in mode.reads.guesses if "branches on" in note and "--assume" in note}
        assert len(branching) == 2
        assert len(mode.reads.guesses) == 3


def test_the_user_may_say_what_a_value_is() -> None:
    line = test_the_user_may_say_what_a_value_is.__code__.co_firstlineno + 5
    with fakes() as mode:
        mode.reads = Reads({f"test_fake_operators.py:{line}": 7.0, "elsewhere.py:1": True})
        x = made(8)
        assert (x.sum().item(), "here") == (7.0, "here")
        assert x.sum().item() != 7.0
        assert mode.reads.unused == {"elsewhere.py:1"}


def test_a_loop_that_waits_for_a_value_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memprof.prediction.fake.value_reads.MOST_READS", 1000)
    with fakes():
        x = made(8)

        def wait() -> None:
            while not (x > 0).any():
                pass

        with pytest.raises(UsageError, match=r"may never end: say what it is with --assume .*:\d+=VALUE"):
            wait()


def test_a_copy_of_a_fake_tensor_shares_what_the_original_shares() -> None:
    with fakes() as mode, readable_in_python(mode):
        whole = made(8)
        before = mode.log.live_bytes
        copied = copy.deepcopy({"whole": whole, "half": whole[:4], "again": whole})
        assert mode.log.live_bytes - before == 32
        assert copied["again"] is copied["whole"]
        assert copied["half"].untyped_storage().data_ptr() == copied["whole"].untyped_storage().data_ptr()


def test_optimizers_and_initialisers_may_read() -> None:
    with fakes("optimizer") as mode:
        assert made(8).norm().item() == 1.0
        assert bool((made(8) > 0).any())
        assert ("aten::_local_scalar_dense", "optimizer") in mode.reads.assumed


@pytest.mark.parametrize(
    "initialiser",
    [
        nn.init.trunc_normal_,
        nn.init.kaiming_uniform_,
        nn.init.orthogonal_,
        nn.init.dirac_,
        lambda weight: nn.init.sparse_(weight[0, 0], 0.5),
    ],
)
def test_initialisers_end(initialiser: Callable[[Tensor], object]) -> None:
    with fakes("build"):
        initialiser(made(128, 64, 9, 9))


def test_code_that_waits_for_a_value_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memprof.prediction.fake.value_reads.MOST_READS", 100)

    def wait() -> None:
        while not (made(8) > 0).any():
            pass

    with fakes("build"), pytest.raises(UsageError, match="reads values that depend on the data again and again"):
        wait()


def test_an_operator_without_a_meta_kernel_is_one_sentence() -> None:
    with torch.library._scoped_library("memprof_test", "DEF") as library:
        library.define("opaque(Tensor x) -> Tensor")
        library.impl("opaque", lambda x: x.clone(), "CPU")
        with fakes(), pytest.raises(UsageError, match=r"memprof_test::opaque, which has no fake kernel"):
            torch.ops.memprof_test.opaque(made(4))


def test_an_operator_with_a_fake_kernel_of_the_users_runs() -> None:
    with torch.library._scoped_library("memprof_test", "DEF") as library:
        library.define("halve(Tensor x) -> Tensor")
        torch.library.register_fake("memprof_test::halve", lambda x: x.new_empty(x.shape[0] // 2), lib=library)
        with fakes():
            assert torch.ops.memprof_test.halve(made(4)).shape == (2,)


def test_resize_takes_a_new_storage_only_when_it_has_to() -> None:
    with fakes() as mode:
        x = made(8)
        address = x.data_ptr()
        start = len(mode.log.entries(0))
        assert x.resize_(4).data_ptr() == address
        assert sizes(mode, start) == []
        x.resize_(100)
        assert x.shape == (100,)
        assert sizes(mode, start) == [400, -32]


def test_wrong_shapes_raise_what_pytorch_raises() -> None:
    with fakes(), pytest.raises(RuntimeError, match="reduction dim"):
        made(2, 3) @ made(2, 3)


def test_nothing_stays_behind() -> None:
    with fakes() as mode:
        before = mode.log.live_bytes
        x = made(64, 64, grad=True)
        (x @ x).relu().sum().backward()
        del x
        gc.collect()
        assert mode.log.live_bytes == before


def test_works_with_tensor_methods_of_other_libraries() -> None:
    """`numpy()` would read what is not there: within a training it is made up, as what `tolist` gives."""
    mode = FakeOperators(EventLog(), Reads(), CpuSemantics())
    with CpuSemantics().applied(mode), mode:
        mode.phase = "forward"
        assert torch.arange(3).numpy().tolist() == [0, 1, 2]
        assert made(3).numpy().tolist() == made(3).tolist() == [1.0, 1.0, 1.0]
