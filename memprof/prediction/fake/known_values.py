"""Which tensors have values: real ones that nothing unknown was written to. And what an operator's schema says.

Small integer and boolean tensors (masks, positions, token ids), and smaller floating-point ones that are made of
known values, are real and computed with real kernels: what a model reads from them is what it would read in real
training. Everything else is fake.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memprof.prediction.fake.event_log import FIRST_ADDRESS
from memprof.prediction.fake.tensors import Result

aten = torch.ops.aten

# Entries of a tensor whose values are kept: masks and positions of a batch, but not masks of length x length.
_LARGEST = {"integers": 2 << 20, "booleans": 1 << 20, "floats": 16 << 10}
_OUT = getattr(torch.Tag, "out", None)  # not in 2.8
_MARK = "_memprof_unknown"  # on the storage of a real tensor that was written with fake values
_UNDECLARED_VIEWS = {aten._unsafe_view.default, aten._reshape_alias.default}
# It leaves its flag at "no overflow", as in a training that goes well.
_KEEPS_VALUES = {aten._amp_foreach_non_finite_check_and_unscale_.default}
# Running statistics that these write although the schema does not say so.
_ALSO_WRITES = {aten.native_batch_norm.default: (3, 4), aten.cudnn_batch_norm.default: (3, 4)}


def is_fake(tensor: Tensor) -> bool:
    """Say whether the values of a tensor are unknown."""
    if not is_dense(tensor):
        return any(map(is_fake, parts_of(tensor)))
    return tensor.data_ptr() >= FIRST_ADDRESS or hasattr(tensor.untyped_storage(), _MARK)


def is_dense(tensor: Tensor) -> bool:
    """Say whether a tensor is a view of one storage; a sparse one is made of several tensors."""
    return tensor.layout is torch.strided


def parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors that a sparse one is made of; a dense one is one by itself."""
    if is_dense(tensor):
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    by_row = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    if by_row:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()


def forget(func: Any, written: Iterable[Tensor]) -> None:
    """From now on nobody knows the values of these tensors, nor those of their views."""
    for tensor in written if func not in _KEEPS_VALUES else ():
        if not is_fake(tensor):
            setattr(tensor.untyped_storage(), _MARK, True)


def is_worth_computing(result: Result) -> bool:
    """Say whether outputs are small enough to be computed for real."""
    return result.entries <= _LARGEST[result.kind]


def also_written(func: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """Return the arguments that an operator writes to without saying so."""
    return [args[place] for place in _ALSO_WRITES.get(func, ()) if args[place] is not None]


# Of an operator's schema every question makes new objects, so each is asked once.


@cache
def name_of(func: Any) -> str:
    """Return an operator's name without its overload: `aten::add`."""
    schema = getattr(func, "_schema", None)  # a higher-order operator has none
    name: str = f"higher_order::{func.name()}" if schema is None else schema.name
    return name


@cache
def returns_of(func: Any) -> int:
    """Return how many values an operator returns."""
    return len(func._schema.returns)


@cache
def shape_depends_on_values(func: Any) -> bool:
    """Say whether only values tell what an operator returns."""
    return bool({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags))


@cache
def resizes_outputs(func: Any) -> bool:
    """Say whether an operator writes to `out=` arguments, which it may give another size."""
    return _OUT in func.tags


@cache
def written_places(func: Any) -> tuple[tuple[int, str], ...]:
    """Return place and name of the arguments that an operator writes to."""
    arguments = enumerate(func._schema.arguments)
    return tuple((place, a.name) for place, a in arguments if a.alias_info is not None and a.alias_info.is_write)


@cache
def kind_of(func: Any) -> Literal["view", "write", "empty", "compute"]:
    """Return what an operator does: looks at an argument, writes to some, makes room, or computes something new."""
    if func.is_view or func in _UNDECLARED_VIEWS or torch.Tag.inplace_view in func.tags:
        return "view"
    if written_places(func) and all(value.alias_info is not None for value in func._schema.returns):
        return "write"
    return "empty" if func._schema.name.partition("::")[2].startswith(("empty", "new_empty")) else "compute"


def geometry_of(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return what the geometry of an operator's result depends on, of its arguments."""
    parts: list[Any] = []
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            parts.append((value.shape, value.stride(), value.dtype))
        elif kind is list or kind is tuple:
            parts.append(geometry_of(value))
        elif isinstance(value, Tensor):
            parts.append((value.shape, value.stride() if value.layout is torch.strided else (), value.dtype))
        else:
            parts.append((kind, value))  # 1, 1.0 and True are equal, and promote types differently
    return tuple(parts)
