"""Memory that kernels take for themselves on this machine's CPU, which no meta kernel shows.

Examples are copies in blocked layouts and scratchpads of oneDNN, columns of convolutions, partial sums of each thread,
sorted or cast copies, LAPACK's workspaces, and a Python number as a tensor. Their sizes depend on the implementation
that is chosen by instruction set, number of threads and shape, and no formula for them is documented. Nor is there a
list of the operators that take such memory, because it differs between processors. So every operator is tried: it runs
once on zeros of the true geometry and its blocks are recorded (`kernel_recorder`). The result is exact for this
machine, its PyTorch and its number of threads, and for nothing else.

| operators | are tried |
|---|---|
| views, `empty` and others that make tensors of none, `FILLS` | not at all, because they take no more than a number |
| elementwise, matrix products in float32 | with a smaller size, unless they are small anyway (`_SHARE`) |
| lists of tensors (`_foreach_add_`) | with few entries if there are many |
| all others | as they are |
| all others if that is too much work (`MOST_BYTES`, `MOST_PRODUCTS`) | with two smaller sizes of one dimension |

In the last case every block is extrapolated in proportion, which is exact for copies and an estimate for scratchpads.
Operators that cannot be tried at all are not counted. `CpuWorkspaces.doubts` names both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memprof.prediction.cpu.kernel_recorder import is_recording, kernel_events
from memprof.prediction.cuda.kernels.fsdp import padded_copies
from memprof.prediction.fake.accumulation import is_dense
from memprof.prediction.fake.event_log import Steps
from memprof.prediction.fake.known_values import geometry_of, name_of
from memprof.prediction.fake.tensors import tensors_in

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
aten = torch.ops.aten

MOST_BYTES = 64 << 20  # of the tensors that an operator is tried on and makes
MOST_PRODUCTS = 1 << 30  # multiplications that a trial may take: some 0.1 s on one core
# Where what is taken is in proportion, or nothing on most CPUs, little is tried: a share of these, and all if need be.
_MOST_SINGLE_PRODUCTS = 1 << 28  # matrix products in float32 and float64
_ELEMENTWISE_BYTES = 4 << 20
_SHARE = 1 / 16
_SLOWER = {torch.float16: 8}  # computed by plain loops on most CPUs
_FEW = 16  # entries that each tensor of a list is tried with

# Others belong to libraries that may do more than compute (collectives), or are the user's own.
_NAMESPACES = ("aten", "torchvision")

# They fill what is there or what they make with one value, and take nothing (TensorFactories.cpp, Fill.cpp).
FILLS = frozenset(
    (
        *(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default),
        *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default),
        *(aten.zero_.default, aten.fill_.Scalar),
    )
)

# Elementwise, although PyTorch does not tag them so.
_ELEMENTWISE = frozenset(
    (
        *(aten.copy_.default, aten._to_copy.default, aten.masked_fill_.Tensor),
        *(aten.normal_.default, aten.uniform_.default, aten.random_.default, aten.random_.to),
        *(aten.bernoulli_.float, aten.exponential_.default, aten.native_dropout.default),
    )
)

# These read a workspace that only their forward kernel can make, and its meta kernel says that it is empty: given a
# made-up one, they read memory that is not there (aten/src/ATen/native/mkldnn/RNN.cpp).
_UNSAFE = frozenset((aten.mkldnn_rnn_layer_backward.default,))

# Places of the tensors whose first dimension is the batch, where others may be as long by chance.
_BATCHED: Mapping[Any, tuple[int, ...]] = {
    aten.convolution.default: (0,),
    aten.convolution_backward.default: (0, 1),
    aten._scaled_dot_product_flash_attention_for_cpu.default: (0, 1, 2),
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (0, 1, 2, 3, 4, 5),
    aten.native_layer_norm.default: (0,),
    aten.native_layer_norm_backward.default: (0, 1, 3, 4),
    aten.native_batch_norm.default: (0,),
    aten.native_batch_norm_backward.default: (0, 1),
}
_CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
_LEAST_BATCH = 2  # of convolutions: one image goes to other kernels (`ConvParams::use_mkldnn` in Convolution.cpp)
_SINGLE = (torch.float32, torch.float64)
_PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
_CUBIC = ("linalg_", "svd", "eig", "cholesky", "lu_", "qr", "triangular", "matrix_exp", "lstsq", "inverse", "cdist")
_CUBIC_PASSES = 32  # over a matrix, for each of its columns, by the slowest of these


class _SharedDimension(NamedTuple):
    """A dimension that several arguments share.

    Attributes:
        size: The size of the dimension.
        least: The smallest size with which the operator may be tried.
        cut: Returns the arguments with another size of the dimension. It does not read their values.
    """

    size: int
    least: int
    cut: Callable[[int], tuple[Args, Kwargs]]


class CpuWorkspaces:
    """The memory that the operators of one training take on this machine's CPU, beside their outputs."""

    def __init__(self) -> None:
        self._known: dict[Any, Steps] = {}
        self._doubtful: dict[str, set[str]] = {}

    @property
    def doubts(self) -> list[str]:
        """Sentences on operators whose workspaces are estimated or unknown."""
        return [f"{', '.join(sorted(names))}: {doubt}." for doubt, names in self._doubtful.items()]

    def takes(self, func: Any) -> bool:
        """Return whether an operator may take memory for itself.

        Args:
            func: The operator's overload.
        """
        return is_asked(func) or func is aten._chunk_cat.out

    def kept(self, func: Any, backward: bool) -> int:
        """Return 0, because no kernel on the CPU keeps memory of PyTorch's allocator."""
        return 0

    def scratch(self, func: Any, args: Args, kwargs: Kwargs, made: int = 0) -> Steps:
        """Return the blocks that an operator takes and gives back, in order.

        Args:
            func: The operator's overload.
            args: Its arguments.
            kwargs: Its keyword arguments.
            made: The bytes of its outputs.
        """
        if func is aten._chunk_cat.out:
            return padded_copies(args)
        key = (func, _geometry(func, args), _geometry(func, kwargs.items()) if kwargs else None)
        steps = self._known.get(key)
        if steps is None:
            steps = self._known[key] = self._ask(func, args, kwargs, made)
        return steps

    def _ask(self, func: Any, args: Args, kwargs: Kwargs, made: int) -> Steps:
        if is_recording():
            self._doubt("every operator", "what their kernels take for themselves is not counted: a profiler runs")
            return []
        name = name_of(func)
        shares = (_SHARE, 1) if _is_predictable(func, args) else (1,)
        if func in _UNSAFE:
            events = None
            why = "they read what only their forward kernels make"
        elif _is_small(func, args, kwargs, made, shares[0]):
            events = kernel_events(func, args, kwargs)
            why = "they do not run on made-up values"
        elif _takes_lists(func):
            events = _constant(func, args, kwargs)
            why = "they are too large to try"
        else:
            extended = (self._extended(func, args, kwargs, made, share) for share in shares)
            events = next((events for events in extended if events is not None), None)
            why = "they are too large to try"
        if events is None:
            self._doubt(name, f"what their kernels take for themselves is not counted: {why}")
        return steps_of(events or [])

    def _extended(self, func: Any, args: Args, kwargs: Kwargs, made: int, share: float) -> list[int] | None:
        """Return the events of a large size, extrapolated from a small size and one twice as large."""
        for axis in _axes(func, args, kwargs):
            size = axis.size // 2
            while size >= axis.least and not _is_small(func, *axis.cut(2 * size), made * 2 * size // axis.size, share):
                size //= 2
            if size < axis.least:
                continue
            one, two = (kernel_events(func, *axis.cut(each)) for each in (size, 2 * size))
            if one is None or two is None or [event > 0 for event in one] != [event > 0 for event in two]:
                continue
            if _scratch_of(one) != _scratch_of(two) and not is_elementwise(func):
                self._doubt(name_of(func), "what their kernels take for themselves is extended from smaller batches")
            pairs = zip(one, two, strict=True)
            return [int(first + (second - first) * (axis.size - size) / size) for first, second in pairs]
        return None

    def _doubt(self, name: str, sentence: str) -> None:
        self._doubtful.setdefault(sentence, set()).add(name)


@cache
def is_asked(func: Any) -> bool:
    """Return whether an operator is tried. Operators that make tensors of none take no more than a number.

    Args:
        func: The operator's overload.
    """
    if func.namespace not in _NAMESPACES or func in FILLS:
        return False
    name = name_of(func).partition("::")[2]
    takes_tensors = any("Tensor" in str(argument.type) for argument in func._schema.arguments)
    return takes_tensors and not name.startswith(("empty", "new_empty"))


@cache
def is_elementwise(func: Any) -> bool:
    """Return whether each entry of an operator's result depends on one entry of each argument.

    Args:
        func: The operator's overload.
    """
    if func in _ELEMENTWISE or torch.Tag.pointwise in func.tags:
        return True
    namespace, _, name = name_of(func).partition("::")
    functional = getattr(getattr(torch.ops, namespace), name[:-1], None) if name.endswith("_") else None
    if functional is None or func._overloadname not in functional.overloads():
        return False
    return is_elementwise(getattr(functional, func._overloadname))


@cache
def _takes_lists(func: Any) -> bool:
    return "_foreach_" in name_of(func)


def _geometry(func: Any, values: Any) -> tuple[Any, ...]:
    """Return the values on which a kernel's memory depends. For elementwise kernels the value of a float is none."""
    if not is_elementwise(func):
        return geometry_of(values)
    return geometry_of(_without_floats(value) for value in values)


def _without_floats(value: Any) -> Any:
    if isinstance(value, tuple):  # name and value
        return tuple(map(_without_floats, value))
    return float if isinstance(value, float) else value


def _is_predictable(func: Any, args: Args) -> bool:
    """Return whether an operator's memory is in proportion to its size, or nothing on most CPUs."""
    return is_elementwise(func) or _takes_lists(func) or (func in _PRODUCTS and args[-1].dtype in _SINGLE)


def _is_small(func: Any, args: Args, kwargs: Kwargs, made: int, share: float) -> bool:
    """Return whether an operator stays within a share of the largest work that is tried."""
    held = made + sum(tensor.nbytes for tensor in tensors_in((*args, *kwargs.values())))
    if is_elementwise(func) or _takes_lists(func):
        return held <= share * _ELEMENTWISE_BYTES
    dtype = next((tensor.dtype for tensor in tensors_in(args)), None)
    single = func in _PRODUCTS and dtype in _SINGLE
    most = _MOST_SINGLE_PRODUCTS if single else MOST_PRODUCTS // (_SLOWER.get(dtype, 1) if dtype is not None else 1)
    return held <= share * MOST_BYTES and _products(func, args) <= share * most


def _axes(func: Any, args: Args, kwargs: Kwargs) -> Iterator[_SharedDimension]:
    """Yield the dimensions in which an operator can be made smaller, the likeliest first."""
    tensors = [tensor for tensor in tensors_in((*args, *kwargs.values())) if tensor.dim()]
    if func in _BATCHED:
        places = _BATCHED[func]
        least = _LEAST_BATCH if func in _CONVOLUTIONS else 1
        yield _SharedDimension(
            args[places[0]].shape[0],
            least,
            lambda size: (tuple(_cut(arg, 0, size) if n in places else arg for n, arg in enumerate(args)), kwargs),
        )
    elif func in _PRODUCTS:
        yield from _product_axes(args, kwargs)
    elif is_elementwise(func):
        first = tensors[0]
        if is_dense(first) and all((one.shape, one.stride()) == (first.shape, first.stride()) for one in tensors):
            # One dimension, as the kernel itself has it (`TensorIteratorBase::coalesce_dimensions`).
            args, kwargs = _flat(args), _flat(kwargs)
            tensors = [torch.empty(tensors[0].numel(), device="meta")]
        ranks = range(1, 1 + max(tensor.dim() for tensor in tensors))
        whole = {rank: max(tensor.shape[-rank] for tensor in tensors if tensor.dim() >= rank) for rank in ranks}
        for rank in sorted(ranks, key=lambda rank: -whole[rank]):
            yield _shared(args, kwargs, -rank, whole[rank])
    else:
        for dim, size in enumerate(tensors[0].shape):
            yield _shared(args, kwargs, dim, size)


def _flat(value: Any) -> Any:
    """Return the arguments with tensors of one dimension."""
    if isinstance(value, dict):
        return {name: _flat(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_flat(item) for item in value])
    has = isinstance(value, Tensor) and value.dim()
    return torch.empty(value.numel(), dtype=value.dtype, device="meta") if has else value


def _shared(args: Args, kwargs: Kwargs, dim: int, whole: int) -> _SharedDimension:
    """Return one dimension of all tensors that have the given size there."""

    def cut(value: Any, size: int) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)([cut(item, size) for item in value])
        has = isinstance(value, Tensor) and -value.dim() <= dim < value.dim() and value.shape[dim] == whole
        return _cut(value, dim, size) if has else value

    def cut_all(size: int) -> tuple[Args, Kwargs]:
        return cut(args, size), {name: cut(value, size) for name, value in kwargs.items()}

    return _SharedDimension(whole, 1, cut_all)


def _product_axes(args: Args, kwargs: Kwargs) -> list[_SharedDimension]:
    """Return rows, columns and the inner dimension, largest first, with the batch before them if there is one."""
    first, left, right = len(args) - 2, args[-2], args[-1]

    def axis(whole: int, *places: tuple[int, int]) -> _SharedDimension:
        def cut(size: int) -> tuple[Args, Kwargs]:
            cut_args = list(args)
            for place, dim in places:
                tensor = args[place]
                if tensor.dim() >= -dim and tensor.shape[dim] == whole:
                    cut_args[place] = _cut(tensor, dim, size)
            return tuple(cut_args), kwargs

        return _SharedDimension(whole, 1, cut)

    added = [0] if first else []
    rows = axis(left.shape[-2], (first, -2), *((place, -2) for place in added))
    columns = axis(right.shape[-1], (first + 1, -1), *((place, -1) for place in added))
    inner = axis(left.shape[-1], (first, -1), (first + 1, -2))
    batch = [axis(left.shape[0], *((place, -3) for place in range(len(args))))] if left.dim() == 3 else []
    return [*batch, *sorted((rows, columns, inner), key=lambda one: -one.size)]


def _cut(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Return a meta tensor with another size of one dimension, as dense as before and in the same order."""
    shape = list(tensor.shape)
    shape[dim] = size
    strides = list(tensor.stride())
    if is_dense(tensor):
        step = 1
        for place in sorted(range(len(shape)), key=lambda place: (strides[place], tensor.shape[place] != 1)):
            strides[place] = step
            step *= shape[place]
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device="meta")


def _constant(func: Any, args: Args, kwargs: Kwargs) -> list[int] | None:
    """Return the events of an operator on lists, if its own memory does not depend on the sizes; None otherwise."""

    def few(value: Any, entries: int) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)([few(item, entries) for item in value])
        if isinstance(value, Tensor) and value.dim():
            return torch.empty(entries, dtype=value.dtype, device="meta")
        return value

    sizes = (_FEW, 2 * _FEW)
    one, two = (
        kernel_events(func, few(args, size), {name: few(value, size) for name, value in kwargs.items()})
        for size in sizes
    )
    if one is None or two is None or _scratch_of(one) != _scratch_of(two):
        return None
    return _scratch_of(one)


def _scratch_of(events: list[int]) -> list[int]:
    """Return the events without those of the outputs."""
    ends = _ends(events)
    return [size for place, size in enumerate(events) if place in ends or place in ends.values()]


def steps_of(events: list[int]) -> Steps:
    """Return recorded events as the steps of a kernel, with its outputs in their place.

    Outputs are the blocks that are never freed. All but the last are represented by blocks of their size until the last
    one is made.

    Args:
        events: The bytes that were allocated (positive) and freed (negative), in order.
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
    """Return, for each free, the place of the allocation that it ends: the youngest of that size."""
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
    """Return about how many multiplications an operator does; 0 if it does only a few for each entry."""
    if func is aten.convolution.default:
        spread = args[0].shape[1] * math.prod(args[3])
        return int(args[0].numel() * math.prod(args[1].shape) // max(1, spread))
    if func is aten.convolution_backward.default:
        return int(2 * args[0].numel() * math.prod(args[2].shape) // max(1, args[0].shape[1]))
    if func in _PRODUCTS:
        return int(args[-2].numel() * args[-1].shape[-1])
    name = name_of(func)
    if "flash" in name:
        return int(2 * args[0].numel() * args[0].shape[2])
    tensors = [tensor for tensor in tensors_in(args) if tensor.dim()]
    if "rnn" in name:
        return tensors[0].numel() * max(1, sum(weight.numel() for weight in tensors[1:5]) // tensors[0].shape[-1])
    if any(one in name for one in _CUBIC) and "vector_norm" not in name:
        return _CUBIC_PASSES * max((tensor.numel() * tensor.shape[-1] for tensor in tensors), default=0)
    return 0
