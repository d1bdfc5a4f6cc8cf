"""Runs DTensor's sharding propagation outside of the dispatch mode, and for lists only once for each kind of entry.

PyTorch propagates shardings with meta tensors, which are not part of the training. For operators on lists
(`_foreach_add_`, `_fused_adam_`) it does so for every entry, and the time grows with the square of the list's length.
Entries of the same geometry have the same result (`tests/benchmarks/test_prediction_benchmark.py` prints the time
that this saves).

Private API (see `memprof.torch_private`): `ShardingPropagator`, `OpSchema`, `OutputSharding`,
`DTensorSpec` and `_disable_current_modes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.tensor._dtensor_spec import DTensorSpec
from torch.distributed.tensor._op_schema import OpSchema, OutputSharding
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import _disable_current_modes

_METHODS = ("propagate_op_sharding_non_cached", "_propagate_tensor_meta_non_cached")
_ENTRY_BY_ENTRY = ("aten::_foreach_", "aten::_fused_")


@contextmanager
def dtensors_outside_modes() -> Iterator[None]:
    """Keep DTensor's sharding propagation away from the dispatch mode within the `with` block."""
    with ExitStack() as stack:
        for name in _METHODS:
            plain = _outside_modes(getattr(ShardingPropagator, name))
            method = once_per_kind(plain) if name == _METHODS[0] else plain
            stack.enter_context(patch.object(ShardingPropagator, name, method))
        yield


def _outside_modes(method: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return method(*args, **kwargs)

    return run


def once_per_kind(propagate: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that propagates one entry of each kind, and all entries only if one must be redistributed first.

    Args:
        propagate: The propagation method of PyTorch.
    """

    def run(propagator: Any, schema: OpSchema) -> Any:
        kinds = _kinds(schema)
        if kinds is None:
            return propagate(propagator, schema)
        first = {kind: place for place, kind in reversed(list(enumerate(kinds)))}
        places = sorted(first.values())
        answer = propagate(propagator, _with_entries(schema, places))
        specs = answer.output_spec
        if answer.needs_redistribute or not (specs is None or len(specs) == len(places)):
            return propagate(propagator, schema)
        numbers = {place: number for number, place in enumerate(places)}
        whole = None if specs is None else tuple(specs[numbers[first[kind]]] for kind in kinds)
        return OutputSharding(whole, None, needs_redistribute=False)

    return run


def _kinds(schema: OpSchema) -> list[tuple[Any, ...]] | None:
    """Return what the result for each entry depends on; None if the operator takes no lists or all entries differ."""
    lists = _lists(schema)
    if not lists or not schema.op._schema.name.startswith(_ENTRY_BY_ENTRY):
        return None
    kinds = list(zip(*lists, strict=True))
    return kinds if len(set(kinds)) < len(kinds) else None


def _lists(schema: OpSchema) -> list[Any]:
    """Return the lists that are as long as the first argument; no lists if that is not a list of shards."""
    first = schema.args_schema[0] if schema.args_schema else None
    if not isinstance(first, (list, tuple)) or not first or not isinstance(first[0], DTensorSpec):
        return []
    values = (*schema.args_schema, *schema.kwargs_schema.values())
    return [value for value in values if isinstance(value, (list, tuple)) and len(value) == len(first)]


def _with_entries(schema: OpSchema, places: list[int]) -> OpSchema:
    length = len(schema.args_schema[0])  # type: ignore[arg-type]

    def chosen(value: Any) -> Any:
        among = isinstance(value, (list, tuple)) and len(value) == length
        return type(value)(value[place] for place in places) if among else value

    args = tuple(map(chosen, schema.args_schema))
    kwargs = {name: chosen(value) for name, value in schema.kwargs_schema.items()}
    return OpSchema(schema.op, args, kwargs, schema.schema_info)
