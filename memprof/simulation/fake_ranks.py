"""One rank of many on fake tensors: PyTorch's own DDP and FSDP2, in a process group with nobody else in it.

What they do runs as it is, with these exceptions, for what a fake tensor cannot do:

| what | here |
|---|---|
| collectives | nothing is exchanged (`fake_group`) |
| operators of `fsdp::`, kernels written in Python | run, so that the operators within are seen |
| FSDP's parameters, whose storages shrink to nothing and grow again | the log is told |
| DTensor, which asks meta tensors what an operator returns | asks outside the dispatch mode |
| DDP's check that all ranks have the same parameters | allocates what it does; there is nothing to compare |
| DDP's reducer, which writes the order of its buckets into integers | has real ones |

Private API of PyTorch, checked on 2.8.0, 2.13.0 and 2.15.0: the names in `_FSDP`, `_PROPAGATION` and `_DDP`, and
`_disable_current_modes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.distributed.fsdp  # defines the operators of fsdp::
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from memprof.simulation.fake_group import lone_group
from memprof.training.recipe import Recipe

if TYPE_CHECKING:
    from memprof.simulation.fake_operators import FakeOperators, Plan

aten = torch.ops.aten
_FSDP = "torch.distributed.fsdp._fully_shard"
_STORAGE_USERS = (f"{_FSDP}._fsdp_param", f"{_FSDP}._fsdp_param_group")  # the latter since 2.9
_PROPAGATION = (
    "torch.distributed.tensor._sharding_prop.ShardingPropagator.propagate_op_sharding_non_cached",
    "torch.distributed.tensor._sharding_prop.ShardingPropagator._propagate_tensor_meta_non_cached",
)
_DDP = "torch.nn.parallel.distributed._verify_param_shape_across_processes"
_COMPOSED = ("all_gather_copy_in", "split_with_sizes_copy", "chunk_cat")
_INTEGERS = (torch.int32, torch.int64)
_MOST_BUCKETS = 1 << 16


@contextmanager
def fake_ranks(mode: FakeOperators, recipe: Recipe, rank: int = 0) -> Iterator[None]:
    """Within the `with` block this is one of the recipe's ranks, and runs its operators on the mode.

    Raises:
        UsageError: this process is in a process group already.
    """
    with ExitStack() as stack:
        stack.enter_context(lone_group(rank, recipe.world_size, lambda collective, sent: None))
        mode.add_plans({getattr(torch.ops.fsdp, name).default: _composed(mode) for name in _COMPOSED})
        for name in _PROPAGATION:
            stack.enter_context(_outside_modes(name))
        for module in map(import_module, _STORAGE_USERS):
            for function, replacement in _storages(mode).items():
                if hasattr(module, function):
                    stack.enter_context(patch.object(module, function, replacement))
        if recipe.strategy == "ddp":
            mode.add_plans({aten.empty.memory_format: _real_integers(mode)})
            stack.enter_context(patch(_DDP, _verify(mode)))
        yield


def _composed(mode: FakeOperators) -> Plan:
    """Run the kernel, with the mode looking on."""

    def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with mode:
            return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)

    return run


@contextmanager
def _outside_modes(name: str) -> Iterator[None]:
    owner, _, method = name.rpartition(".")
    module, _, class_ = owner.rpartition(".")
    cls = getattr(import_module(module), class_)
    original = getattr(cls, method)

    def run(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return original(*args, **kwargs)

    with patch.object(cls, method, run):
        yield


def _storages(mode: FakeOperators) -> Mapping[str, Callable[[Tensor], None]]:
    """Give the storage of a gathered parameter its memory, or take it away (`Storage.resize_`)."""

    def alloc_storage(tensor: Tensor) -> None:
        mode.log.resized(tensor.untyped_storage().data_ptr(), tensor.numel() * tensor.itemsize)

    def free_storage(tensor: Tensor) -> None:
        mode.log.resized(tensor.untyped_storage().data_ptr(), 0)

    return {"alloc_storage": alloc_storage, "free_storage": free_storage}


def _real_integers(mode: FakeOperators) -> Plan:
    """Let the reducer write and read the order of its buckets, which it does without operators."""

    def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        real = kwargs.get("dtype") in _INTEGERS and len(args[0]) == 1 and args[0][0] < _MOST_BUCKETS
        return (mode.run_real if real else mode.run_fake)(func, args, kwargs)

    return run


def _verify(mode: FakeOperators) -> Callable[..., None]:
    """Allocate what `verify_params_across_processes` does (torch/csrc/distributed/c10d/reducer.cpp)."""

    def integers(count: int, host: bool) -> Tensor:
        with mode.made_on(host=host):
            made: Tensor = aten.empty.memory_format([count], dtype=torch.int64)
        return made

    def verify(group: Any, tensors: list[Tensor], logger: Any = None) -> None:
        counts = [integers(1, host=False) for _ in range(1 + group.size())]
        geometry = sum(2 * tensor.dim() for tensor in tensors)
        sizes = [integers(geometry, host) for host in (True, False, True)]
        del counts, sizes

    return verify
