"""Tells tensors with known values from fake ones, and reads the schemas of operators.

Small integer and boolean tensors (masks, positions, token ids), and even smaller floating-point ones, are real if they
are made of known values. Real kernels compute them, so a model reads the same values as in real training. All other
tensors are fake.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from memprof.prediction.fake.event_log import FIRST_ADDRESS
from memprof.prediction.fake.tensors import Result

aten = torch.ops.aten

# The largest number of entries of a tensor whose values are kept. It suffices for the masks and positions of a batch,
# but not for masks of length x length.
_LARGEST = {"integers": 2 << 20, "booleans": 1 << 20, "floats": 16 << 10}
_OUT = getattr(torch.Tag, "out", None)  # not in 2.8
_PLAIN = (Tensor, nn.Parameter)
_MARK = "_memprof_unknown"  # on the storage of a real tensor that was written with fake values
_UNDECLARED_VIEWS = {aten._unsafe_view.default, aten._reshape_alias.default}
# This operator leaves its flag at "no overflow", as in a training that goes well.
_KEEPS_VALUES = {aten._amp_foreach_non_finite_check_and_unscale_.default}
# These operators write running statistics at these places, although their schemas do not say so.
_ALSO_WRITES = {aten.native_batch_norm.default: (3, 4), aten.cudnn_batch_norm.default: (3, 4)}


def is_fake(tensor: Tensor) -> bool:
    """Return whether the values of a tensor are unknown.

    Args:
        tensor: Any tensor.
    """
    if not is_dense(tensor):
        return any(map(is_fake, parts_of(tensor)))
    return tensor.data_ptr() >= FIRST_ADDRESS or hasattr(tensor.untyped_storage(), _MARK)


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor is a view of one storage; a sparse one is made of several tensors."""
    return tensor.layout is torch.strided


def parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors that a sparse one or a wrapper is made of; a dense one is one by itself.

    A wrapper such as the `AsyncCollectiveTensor` that functional collectives return has no storage of its own.
    """
    if type(tensor) not in _PLAIN and is_traceable_wrapper_subclass(tensor):
        inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        return tuple(part for one in inner for part in parts_of(one))
    if is_dense(tensor):
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    by_row = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    if by_row:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()


def forget(func: Any, written: Iterable[Tensor]) -> None:
    """Mark the values of tensors, and of their views, as unknown from now on.

    Args:
        func: The operator that writes to the tensors.
        written: The tensors.
    """
    for tensor in written if func not in _KEEPS_VALUES else ():
        make_unknown(tensor)


def make_unknown(tensor: Tensor) -> None:
    """From now on nobody knows the values of a tensor, nor those of its views."""
    if not is_fake(tensor):
        setattr(tensor.untyped_storage(), _MARK, True)


def is_worth_computing(result: Result) -> bool:
    """Return whether outputs are small enough to be computed with real kernels.

    Args:
        result: The result of the operator.
    """
    return result.entries <= _LARGEST[result.kind]


def also_written(func: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """Return the arguments that an operator writes to although its schema does not say so.

    Args:
        func: The operator's overload.
        args: Its arguments.
    """
    return [args[place] for place in _ALSO_WRITES.get(func, ()) if args[place] is not None]


# Every access to an operator's schema makes new objects, so the answers are cached.


@cache
def name_of(func: Any) -> str:
    """Return an operator's name without its overload, as in `aten::add`."""
    schema = getattr(func, "_schema", None)  # a higher-order operator has none
    name: str = f"higher_order::{func.name()}" if schema is None else schema.name
    return name


@cache
def returns_of(func: Any) -> int:
    """Return how many values an operator returns."""
    return len(func._schema.returns)


@cache
def shape_depends_on_values(func: Any) -> bool:
    """Return whether the shape of an operator's result depends on the values of its arguments."""
    return bool({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags))


@cache
def resizes_outputs(func: Any) -> bool:
    """Return whether an operator writes to `out=` arguments, which it may resize."""
    return _OUT in func.tags


@cache
def written_places(func: Any) -> tuple[tuple[int, str], ...]:
    """Return the place and the name of each argument that an operator writes to."""
    arguments = enumerate(func._schema.arguments)
    return tuple((place, a.name) for place, a in arguments if a.alias_info is not None and a.alias_info.is_write)


@cache
def kind_of(func: Any) -> Literal["view", "write", "empty", "compute"]:
    """Return what an operator does: it views an argument, writes to some, makes an empty tensor, or computes one."""
    if func.is_view or func in _UNDECLARED_VIEWS or torch.Tag.inplace_view in func.tags:
        return "view"
    if written_places(func) and all(value.alias_info is not None for value in func._schema.returns):
        return "write"
    return "empty" if func._schema.name.partition("::")[2].startswith(("empty", "new_empty")) else "compute"


def geometry_of(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return a key of the arguments on which the geometry of an operator's result depends.

    Args:
        values: The arguments. Of tensors the shape, the strides and the type count.
    """
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
