"""Memory that kernels take for themselves on this machine's CPU, which no meta kernel shows.

| operators | what | asked where |
|---|---|---|
| convolutions | oneDNN's copies in blocked layouts, its scratchpad; columns where PyTorch's own kernel runs | always |
| matrix products | oneDNN's scratchpad (`use_mkldnn_matmul` in `mkldnn/Matmul.cpp`) | halves |
| flash attention | a buffer for each thread (`FlashAttentionKernel.cpp`) | always |
| norms | statistics, partial sums for each thread, copies of what is not contiguous | always |
| softmax of attention | the mask of rows that are masked out (`_safe_softmax`) | always |
| means, sums | a cast copy, and what the sum is accumulated in | halves, booleans |
| gathers, scatters | sorted or accumulated copies (`TensorAdvancedIndexing.cpp`) | halves |
| FSDP's chunks | padded copies of what does not divide evenly (`_chunk_cat`) | by a rule |
| sums and products of two types | a copy in the common type (`TensorIterator.cpp`) | two types |
| arithmetic with a number, means | the number as a tensor (`cpu_numbers`) | always |

How much oneDNN takes follows from the implementation that it chooses by instruction set, number of threads and shape,
and no formula of it is documented. So the library here is asked: the operator runs once on zeros of the true geometry
and its blocks are recorded (`cpu_recorder`), which is exact for this machine, its PyTorch and its number of threads,
and for nothing else. Where that would be too much work (`MOST_BYTES`, `MOST_PRODUCTS`) it is asked with two smaller
batches, and every block is extended in proportion: exact for copies, an estimate for a scratchpad. What cannot be asked
at all is not counted; `CpuWorkspaces.doubts` says both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from memprof.prediction.cpu.kernel_recorder import kernel_events
from memprof.prediction.cpu.python_numbers import WITH_OPERANDS, stand_in, takes_number
from memprof.prediction.cuda.kernels.fsdp import padded_copies
from memprof.prediction.fake.event_log import Steps
from memprof.prediction.fake.known_values import geometry_of
from memprof.prediction.fake.tensors import tensors_in

Args = tuple[Any, ...]
aten = torch.ops.aten

MOST_BYTES = 64 << 20  # of the tensors that an operator is tried on
MOST_PRODUCTS = 1 << 30  # multiplications that a trial may take: some 0.1 s on one core
_SLOWER = {torch.float16: 8}  # computed by plain loops on most CPUs
_LEAST_BATCH = 2  # a batch of one goes to other kernels (`ConvParams::use_mkldnn` in Convolution.cpp)
_HALVES = (torch.bfloat16, torch.float16)


def _always(args: Args) -> bool:
    return True


def _half(args: Args) -> bool:
    return args[-1 if isinstance(args[-1], Tensor) else 0].dtype in _HALVES


def _narrow(args: Args) -> bool:
    return args[0].dtype in _HALVES or not args[0].is_floating_point()


def _mixed(args: Args) -> bool:
    flat = [item for arg in args for item in (arg if isinstance(arg, (list, tuple)) else [arg])]
    return len({tensor.dtype for tensor in tensors_in(flat) if tensor.dim()}) > 1


_ASKED: Mapping[Any, Callable[[Args], bool]] = {
    **dict.fromkeys((aten.convolution.default, aten.convolution_backward.default), _always),
    **dict.fromkeys((aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default), _half),
    aten._scaled_dot_product_flash_attention_for_cpu.default: _always,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _always,
    **dict.fromkeys((aten.native_layer_norm.default, aten.native_layer_norm_backward.default), _always),
    **dict.fromkeys((aten.native_batch_norm.default, aten.native_batch_norm_backward.default), _always),
    **dict.fromkeys((aten.native_group_norm.default, aten.native_group_norm_backward.default), _always),
    aten._safe_softmax.default: _always,
    **dict.fromkeys((aten.mean.default, aten.mean.dim, aten.sum.default, aten.sum.dim_IntList), _narrow),
    **dict.fromkeys((aten.gather.default, aten.scatter_add_.default), _narrow),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.cat.default), _mixed),
}


# Places of the tensors whose first dimension is the batch, for operators on large inputs.
_BATCHED: Mapping[Any, tuple[int, ...]] = {
    aten.convolution.default: (0,),
    aten.convolution_backward.default: (0, 1),
    aten._scaled_dot_product_flash_attention_for_cpu.default: (0, 1, 2),
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (0, 1, 2, 3, 4, 5),
    aten._safe_softmax.default: (0,),
    aten.native_layer_norm.default: (0,),
    aten.native_layer_norm_backward.default: (0, 1, 3, 4),
    aten.native_batch_norm.default: (0,),
    aten.native_batch_norm_backward.default: (0, 1),
    aten.mm.default: (0,),
    aten.addmm.default: (1,),
}


class CpuWorkspaces:
    """What the operators of one training take on this machine's CPU, beside what they return."""

    operators = frozenset(_ASKED) | WITH_OPERANDS | {aten._chunk_cat.out}

    def __init__(self) -> None:
        self._known: dict[Any, Steps] = {}
        self._estimated: set[str] = set()
        self._unknown: set[str] = set()

    @property
    def doubts(self) -> list[str]:
        """Sentences on operators whose workspaces are estimates, or not known."""
        found = {
            "what their kernels take for themselves is extended from smaller batches": self._estimated - self._unknown,
            "what their kernels take for themselves is not counted: they are too large to try": self._unknown,
        }
        return [f"{', '.join(sorted(names))}: {doubt}." for doubt, names in found.items() if names]

    def kept(self, func: Any, backward: bool) -> int:
        """Return 0: no kernel keeps memory of PyTorch's allocator."""
        return 0

    def scratch(self, func: Any, args: Args, kwargs: dict[str, Any]) -> Steps:
        """Return what an operator takes and gives back, in order."""
        if func is aten._chunk_cat.out:
            return padded_copies(args)
        if takes_number(func, args):
            args = stand_in(func, args)
        elif func not in _ASKED or not _ASKED[func](args):
            return []
        key = (func, geometry_of(args), geometry_of(kwargs.items()))
        if key not in self._known:
            self._known[key] = steps_of(self._events(func, args, kwargs))
        return self._known[key]

    def _events(self, func: Any, args: Args, kwargs: dict[str, Any]) -> list[int]:
        small = _is_small(func, args)
        events = kernel_events(func, args, kwargs) if small else _extended(func, args, kwargs)
        if events is None:
            self._unknown.add(func._schema.name)
        elif not small:
            self._estimated.add(func._schema.name)
        return events or []


def _is_small(func: Any, args: Args) -> bool:
    bytes_ = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(args))
    slower = _SLOWER.get(args[0].dtype, 1) if isinstance(args[0], Tensor) else 1
    return bytes_ <= MOST_BYTES and _products(func, args) * slower <= MOST_PRODUCTS


def _extended(func: Any, args: Args, kwargs: dict[str, Any]) -> list[int] | None:
    """Return the events of a large batch, from those of a small one and of one twice as large."""
    places = _BATCHED.get(func)
    if places is None:
        return None
    whole = args[places[0]].shape[0]
    batch = whole // 2
    while batch >= _LEAST_BATCH and not _is_small(func, _with_batch(args, places, 2 * batch)):
        batch //= 2
    if batch < _LEAST_BATCH:
        return None
    one, two = (kernel_events(func, _with_batch(args, places, size), kwargs) for size in (batch, 2 * batch))
    if one is None or two is None or [size > 0 for size in one] != [size > 0 for size in two]:
        return None
    return [int(first + (second - first) * (whole - batch) / batch) for first, second in zip(one, two, strict=True)]


def _with_batch(args: Args, places: tuple[int, ...], size: int) -> Args:
    """Return the arguments with views of the first entries of the batch; nothing is read of them."""
    return tuple(arg[:size] if place in places else arg for place, arg in enumerate(args))


def steps_of(events: list[int]) -> Steps:
    """Return what was taken and given back as the steps of a kernel, with its outputs in their place.

    Outputs are the blocks never given back; all but the last stand as blocks of their size until it is made, too.
    """
    ends = _ends(events)
    outputs = [place for place, size in enumerate(events) if size > 0 and place not in ends.values()]
    if not ends:
        return []
    numbers: dict[int, int] = {}
    steps: list[int | None] = []
    for place, size in enumerate(events):
        if place in ends:
            steps.append(-numbers[ends[place]])
        elif outputs and place == outputs[-1]:
            steps += [*(-numbers[other] for other in outputs[:-1]), None]
        elif size > 0:
            numbers[place] = len(numbers) + 1
            steps.append(size)
    return steps


def _ends(events: list[int]) -> dict[int, int]:
    """Return, by place, which block ends there: the youngest of that size."""
    living: list[int] = []
    ends: dict[int, int] = {}
    for place, size in enumerate(events):
        if size > 0:
            living.append(place)
        else:
            found = next((begun for begun in reversed(living) if events[begun] == -size), None)
            if found is not None:
                living.remove(found)
                ends[place] = found
    return ends


def _products(func: Any, args: Args) -> int:
    """Return how many multiplications an operator takes, roughly: 0 for those that do a few for each entry."""
    if func is aten.convolution.default:
        spread = args[0].shape[1] * math.prod(args[3])
        return int(args[0].numel() * math.prod(args[1].shape) // max(1, spread))
    if func is aten.convolution_backward.default:
        return int(2 * args[0].numel() * math.prod(args[2].shape) // max(1, args[0].shape[1]))
    if func in (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default):
        return int(args[-2].numel() * args[-1].shape[-1])
    if "flash" in func._schema.name:
        return int(2 * args[0].numel() * args[0].shape[2])
    return 0
