"""One rank of many on fake tensors: PyTorch's own DDP and FSDP2, in a process group with nobody else in it.

What they do runs as it is, with these exceptions, for what a fake tensor cannot do:

| what | here |
|---|---|
| collectives | nothing is exchanged (`process_group`) |
| operators of `fsdp::`, kernels written in Python | run, so that the operators within are seen |
| FSDP's parameters, whose storages shrink to nothing and grow again | the log is told |
| DTensor, which asks meta tensors what an operator returns | asks outside the dispatch mode (`dtensor_cache`) |
| DDP's check that all ranks have the same parameters | allocates what it does; there is nothing to compare |
| DDP's reducer, which writes the order of its buckets into integers | has real ones |
| FSDP, which moves a block to the GPU before it cuts it into shards | copies from the host's tensors to the device's |

Private API (see `memprof.torch_private`): the names in `_FSDP` and `_DDP`, and
`_disable_current_modes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed.fsdp  # defines the operators of fsdp::
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils._python_dispatch import _disable_current_modes

from memprof.documents.recipe import Recipe
from memprof.prediction.cuda.host_and_device import copy_to
from memprof.prediction.fake.dispatch import FakeOperators, Plan
from memprof.prediction.ranks.dtensor_cache import dtensors_outside_modes
from memprof.prediction.ranks.process_group import lone_group
from memprof.trace.events import RangeMark

aten = torch.ops.aten
_FSDP = "torch.distributed.fsdp._fully_shard"
_STORAGE_USERS = (f"{_FSDP}._fsdp_param", f"{_FSDP}._fsdp_param_group")  # the latter since 2.9
_DDP = "torch.nn.parallel.distributed._verify_param_shape_across_processes"
_MOVERS = (f"{_FSDP}._fsdp_init", f"{_FSDP}._fully_shard")  # the latter to 2.12
_MESH = "memprof.training.strategies.init_device_mesh"
_COMPOSED = ("all_gather_copy_in", "split_with_sizes_copy", "chunk_cat")
_COMPILED = "chunk_cat_mixed_dtype"  # since 2.15; for gradients of one type the same as aten's
_INTEGERS = (torch.int32, torch.int64)
_MOST_BUCKETS = 1 << 16


@contextmanager
def fake_ranks(mode: FakeOperators, recipe: Recipe, rank: int = 0) -> Iterator[None]:
    """Within the `with` block this is one of the recipe's ranks, and runs its operators on the mode.

    Raises:
        UsageError: this process is in a process group already.
    """
    with ExitStack() as stack:
        stack.enter_context(lone_group(rank, recipe.world_size))
        mode.add_plans({getattr(torch.ops.fsdp, name).default: _composed(mode) for name in _COMPOSED})
        if hasattr(torch.ops.fsdp, _COMPILED):
            mode.add_plans({getattr(torch.ops.fsdp, _COMPILED).default: _instead(mode, aten._chunk_cat.out)})
        mode.add_plans(_ranges(mode))
        stack.enter_context(patch(_MESH, _mesh(mode)))
        stack.enter_context(dtensors_outside_modes())
        for module in _STORAGE_USERS:
            stack.enter_context(_replaced(module, _storages(mode)))
        if recipe.strategy == "ddp":
            mode.add_plans({aten.empty.memory_format: _real_integers(mode)})
            stack.enter_context(patch(_DDP, _verify(mode)))
        if mode.own_host:
            for module in _MOVERS:
                stack.enter_context(_replaced(module, {"_move_states_to_device": _mover(mode)}))
        else:
            stack.enter_context(_share_of_threads(recipe.world_size))
        yield


@contextmanager
def _share_of_threads(world_size: int) -> Iterator[None]:
    """Ask kernels with as many threads as a rank has when all of them share this machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // world_size))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _replaced(module: str, functions: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    """Replace those functions that a module has."""
    owner = import_module(module)
    with ExitStack() as stack:
        for name in [name for name in functions if hasattr(owner, name)]:
            stack.enter_context(patch.object(owner, name, functions[name]))
        yield


def _composed(mode: FakeOperators) -> Plan:
    """Run the kernel, with the mode looking on."""

    def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with mode:
            return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)

    return run


def _ranges(mode: FakeOperators) -> dict[Any, Plan]:
    """Note the named ranges of FSDP's own work."""
    running: list[str] = []

    def enter(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        running.append(args[0])
        mark(True)
        return func(*args, **kwargs)

    def leave(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mark(False)
        running.pop()
        return func(*args, **kwargs)

    def mark(enters: bool) -> None:
        if running[-1].startswith("FSDP::"):
            mode.log.mark(RangeMark(running[-1], enters))

    profiler = torch.ops.profiler
    return {
        profiler._record_function_enter_new.default: enter,
        profiler._record_function_exit._RecordFunction: leave,
    }


def _instead(mode: FakeOperators, operator: Any) -> Plan:
    """Run another operator that allocates the same."""

    def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with mode:
            operator(*args, **kwargs)

    return run


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


def _mesh(mode: FakeOperators) -> Callable[..., DeviceMesh]:
    """Make the mesh, whose ranks are real numbers on the host, and note only what it keeps."""

    def make(*args: Any, **kwargs: Any) -> DeviceMesh:
        with _disable_current_modes():
            mesh = init_device_mesh(*args, **kwargs)
        storage = getattr(mesh, "_rank_map", mesh.mesh).untyped_storage()  # the former since 2.10
        mode.log.allocated(storage, storage.data_ptr(), storage.nbytes(), host=mode.own_host)
        return mesh

    return make


def _mover(mode: FakeOperators) -> Callable[..., None]:
    """Move what is on the host to the device, tensor by tensor."""

    def move(parameters: list[nn.Parameter], buffers: list[Tensor], device: torch.device) -> None:
        for tensor in (*parameters, *buffers):
            tensor.data = copy_to(tensor.detach(), mode, host=False)

    return move
