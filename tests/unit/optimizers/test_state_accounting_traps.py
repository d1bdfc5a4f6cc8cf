"""Places where state hides, and things that look like state and are none. Each figure is known beforehand."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memprof.optimizers.state_bytes import iter_state_storages, measure_state

BUFFER = 64  # bytes of the buffer that `hoard` hides somewhere


class Hoarder(torch.optim.SGD):
    """An SGD with anything in its state, its groups and its attributes."""

    def __init__(self, parameters: Iterable[nn.Parameter], hidden: Any = None) -> None:
        super().__init__(parameters, lr=0.1)
        self.hidden = hidden


def hoard(hidden: Any) -> int:
    weight = nn.Parameter(torch.zeros(3, 3))
    return measure_state(Hoarder([weight], hidden), [weight]).bytes


def buffer() -> Tensor:
    return torch.zeros(BUFFER, dtype=torch.uint8)


@dataclass
class Factor:
    value: Tensor
    rank: int = 1


@dataclass(frozen=True, slots=True)
class SlottedFactor:
    value: Tensor


class DictWithAttribute(dict[str, Any]):
    extra: Tensor


Pair = namedtuple("Pair", "first second")


def dict_with_attribute() -> DictWithAttribute:
    mapping = DictWithAttribute()
    mapping.extra = buffer()
    return mapping


def cycle() -> list[Any]:
    loop: list[Any] = [buffer()]
    loop.append({"back": loop})
    return loop


def tensor_with_attribute() -> Tensor:
    tensor = torch.zeros(0)
    tensor.quantization = {"absmax": buffer()}  # type: ignore[attr-defined]
    return tensor


HIDING_PLACES: dict[str, Callable[[], Any]] = {
    "attribute": buffer,
    "nested dict": lambda: {"a": {"b": {"c": buffer()}}},
    "default dict": lambda: defaultdict(list, a=[buffer()]),
    "dict key": lambda: {buffer(): 1},
    "mapping proxy": lambda: MappingProxyType(OrderedDict(a=buffer())),
    "list in tuple": lambda: (1, [None, "a", buffer()]),
    "named tuple": lambda: Pair(1, buffer()),
    "set": lambda: {buffer()},
    "deque": lambda: deque([buffer()], maxlen=3),
    "dataclass": lambda: Factor(buffer()),
    "slots": lambda: SlottedFactor(buffer()),
    "object": lambda: SimpleNamespace(projector=SimpleNamespace(matrix=buffer())),
    "dict subclass's attribute": dict_with_attribute,
    "cycle": cycle,
    "tensor's attribute": tensor_with_attribute,
    "parameter list": lambda: nn.ParameterList([nn.Parameter(buffer(), requires_grad=False)]),
    "bare storage": lambda: buffer().untyped_storage(),
    "nested optimizer's attribute": lambda: Hoarder([nn.Parameter(torch.zeros(0))], buffer()),
    "view of one element": lambda: buffer()[5:6],
    "transposed view": lambda: buffer().view(8, 8).T,
    "view of another dtype": lambda: buffer().view(torch.float32),
    "the same tensor twice": lambda: [shared := buffer(), shared],
    "two views of one storage": lambda: [(shared := buffer())[:8], shared[8:16]],
    "two tensors from one array": lambda: [
        torch.from_numpy(array := buffer().numpy()),
        torch.from_numpy(array),
    ],
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_buffer_is_found_and_counted_once(place: str) -> None:
    assert hoard(HIDING_PLACES[place]()) == BUFFER


NOT_STATE: dict[str, Callable[[], Any]] = {
    "numbers": lambda: [1, 2.5, True, None, "text", 3 + 4j],
    "empty tensor": lambda: torch.zeros(0, 7),
    "module": lambda: nn.Linear(4, 4),
    "closure": lambda: functools.partial(torch.add, buffer()),
    "weak reference": lambda: weakref.ref(KEPT_ELSEWHERE),
    "weak values": lambda: weakref.WeakValueDictionary(a=KEPT_ELSEWHERE),
    "class": lambda: type("Config", (), {"table": buffer()}),
}
KEPT_ELSEWHERE = buffer()


@pytest.mark.parametrize("thing", NOT_STATE)
def test_what_is_no_state_counts_nothing(thing: str) -> None:
    assert hoard(NOT_STATE[thing]()) == 0


def test_group_extras_and_a_tensor_learning_rate_count() -> None:
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = torch.optim.SGD([{"params": [weight], "projector": buffer()}], lr=torch.tensor(0.1))
    assert measure_state(optimizer, [weight]).bytes == BUFFER + 4


def test_aliases_of_parameters_and_gradients_are_not_state() -> None:
    weight = nn.Parameter(torch.randn(3, 3))
    weight.grad = torch.randn(3, 3)
    optimizer = Hoarder([weight], [weight.data, weight.detach().view(-1)[:2], weight.grad, weight.grad[0]])
    optimizer.state[weight]["slow"] = weight.data
    assert measure_state(optimizer, [weight]).bytes == 0


def test_frozen_parameters_are_the_models_too() -> None:
    weight, frozen = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(9), requires_grad=False)
    assert measure_state(Hoarder([weight], frozen.data), [weight, frozen]).bytes == 0


def test_a_gradient_the_optimizer_kept_after_zero_grad_is_state() -> None:
    weight = nn.Parameter(torch.randn(3, 3))
    weight.grad = torch.randn(3, 3)
    optimizer = Hoarder([weight], weight.grad)
    assert measure_state(optimizer, [weight]).bytes == 0
    optimizer.zero_grad()
    assert measure_state(optimizer, [weight]).bytes == 36


def test_lookahead_slow_weights_count_as_copy_and_not_as_alias() -> None:
    weight = nn.Parameter(torch.randn(3, 3))
    copy, alias = Hoarder([weight]), Hoarder([weight])
    copy.state[weight]["slow"] = weight.detach().clone()
    alias.state[weight]["slow"] = weight.detach()
    assert measure_state(copy, [weight]).bytes == 36
    assert measure_state(alias, [weight]).bytes == 0


def test_parameters_in_one_flat_buffer_are_excluded_whole() -> None:
    flat = torch.zeros(100)
    weight = nn.Parameter(flat[:50])
    assert measure_state(Hoarder([weight], flat), [weight]).bytes == 0


def test_float32_master_weights_and_their_gradients_count() -> None:
    weight = nn.Parameter(torch.randn(10, dtype=torch.bfloat16))
    master = nn.Parameter(weight.detach().float())
    master.grad = torch.zeros(10)
    report = measure_state(torch.optim.SGD([master], lr=0.1, momentum=0.9), [weight])
    assert report.by_dtype == {"float32": 80}


def test_lookahead_wrapping_adam_counts_the_inner_state() -> None:
    weight = nn.Parameter(torch.randn(3, 3))
    inner = torch.optim.Adam([weight])
    weight.grad = torch.randn(3, 3)
    inner.step()
    assert measure_state(Hoarder([weight], inner), [weight]).bytes == 8 * 9 + 4


def compressed(layout: torch.layout) -> Tensor:
    """Return a compressed diagonal matrix: 5 int64 pointers, 4 int64 indices, 4 float32 values."""
    return torch.sparse_compressed_tensor(
        torch.arange(5), torch.arange(4), torch.ones(4), (4, 4), layout=layout, check_invariants=True
    )


def blocked(layout: torch.layout) -> Tensor:
    """Return a block-diagonal matrix: 3 int64 pointers, 2 int64 indices, 2 blocks of 4 float32 values."""
    return torch.sparse_compressed_tensor(
        torch.arange(3), torch.arange(2), torch.ones(2, 2, 2), (4, 4), layout=layout, check_invariants=True
    )


SPARSE: dict[str, tuple[Callable[[], Tensor], int]] = {
    "coo": (lambda: torch.eye(4).to_sparse(), 2 * 4 * 8 + 4 * 4),
    "csr": (lambda: compressed(torch.sparse_csr), 9 * 8 + 4 * 4),
    "csc": (lambda: compressed(torch.sparse_csc), 9 * 8 + 4 * 4),
    "bsr": (lambda: blocked(torch.sparse_bsr), 5 * 8 + 8 * 4),
    "bsc": (lambda: blocked(torch.sparse_bsc), 5 * 8 + 8 * 4),
    "csr made from a dense matrix": (  # its column indices are a view into the (2, 4) of the conversion
        lambda: torch.eye(4).to_sparse_csr(),
        5 * 8 + 2 * 4 * 8 + 4 * 4,
    ),
}


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_count_indices_and_values(kind: str) -> None:
    make, size = SPARSE[kind]
    assert hoard(make()) == size


@pytest.mark.filterwarnings("ignore")  # torch deprecates its quantized dtypes; they exist until it drops them
def test_per_channel_quantized_tensor_counts_its_scales() -> None:
    quantized = torch.quantize_per_channel(torch.ones(4, 5), torch.ones(4), torch.zeros(4), 0, torch.qint8)
    scales, zeros = quantized.q_per_channel_scales(), quantized.q_per_channel_zero_points()
    assert hoard(quantized) == 20 + scales.untyped_storage().nbytes() + zeros.untyped_storage().nbytes()


class Opaque(Tensor):
    """Codes and scales behind a wrapper without memory of its own; only attributes lead to them."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Opaque:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined]

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...], kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:  # nn.Parameter() asks for it
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(f"{func} computes on a state that is only to be counted")


class Blockwise(Opaque):
    """The same with the flatten protocol, as torchao makes its quantized states."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: Any) -> Blockwise:
        return cls(inner["codes"], inner["scale"])


@pytest.mark.parametrize("kind", [Blockwise, Opaque])
def test_tensor_subclass_counts_what_it_wraps(kind: type[Opaque]) -> None:
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = Hoarder([weight])
    optimizer.state[weight]["exp_avg"] = kind(torch.zeros(64, 64, dtype=torch.uint8), torch.zeros(16))
    report = measure_state(optimizer, [weight])
    assert report.by_dtype == {"uint8": 4096, "float32": 64}


def test_wrapped_parameters_are_excluded_by_what_they_wrap() -> None:
    codes, scale = torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(4)
    weight = nn.Parameter(Blockwise(codes, scale), requires_grad=False)
    assert measure_state(Hoarder([nn.Parameter(torch.zeros(1))], [codes, scale[1:]]), [weight]).bytes == 4


def test_subclass_in_a_subclass() -> None:
    inner = Blockwise(torch.zeros(8, dtype=torch.uint8), torch.zeros(2))
    assert hoard(Blockwise(inner, torch.zeros(1))) == 8 + 8 + 4


def test_dtype_is_that_of_the_first_tensor_that_led_to_the_storage() -> None:
    weight = nn.Parameter(torch.zeros(1))
    raw = torch.zeros(8, dtype=torch.uint8)
    optimizer = Hoarder([weight], [raw.view(torch.int16), raw])
    assert [dtype for _, dtype in iter_state_storages(optimizer, [weight])] == [torch.int16]


def test_parameters_may_come_from_a_generator() -> None:
    model = nn.Linear(3, 3)
    assert measure_state(Hoarder(model.parameters(), list(model.parameters())), model.parameters()).bytes == 0
