"""Runs one rank of many on fake tensors, with PyTorch's own DDP and FSDP in a process group without other members.

The code of DDP and FSDP runs unchanged, except for what fake tensors cannot do:

| part of PyTorch | what happens in a prediction |
|---|---|
| collectives | nothing is exchanged (`process_group`) |
| operators of `fsdp::`, whose kernels are written in Python | they run, so that the operators within are seen |
| DTensor, which runs operators on meta tensors | it runs them outside the dispatch mode (`dtensor_cache`) |
| DDP's check that all ranks have the same parameters | it allocates the same memory and compares nothing |
| DDP's reducer, which writes the order of its buckets into integers | it gets real integers |
| FSDP, which moves a block to the GPU before it shards it | it copies the tensors from the host to the device |

Private API (see `memprof.torch_private`): the names in `_FSDP` and `_DDP`, and
`_disable_current_modes`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed.fsdp  # defines the operators of fsdp::
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d as c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils._python_dispatch import _disable_current_modes

from memprof.documents.recipe import Recipe
from memprof.prediction.cuda.host_and_device import copy_to
from memprof.prediction.fake.checkpoints import ShapePickler, ShapeUnpickler
from memprof.prediction.fake.dispatch import FakeOperators, Plan
from memprof.prediction.fake.known_values import is_fake
from memprof.prediction.ranks.dtensor_cache import dtensors_outside_modes
from memprof.prediction.ranks.process_group import BACKEND, LoneGroup, lone_group, make_lone_group
from memprof.scripts.torchrun import ProcessGroups, ranks_of_a_machine, torchrun, torchrun_environment
from memprof.trace.events import RangeMark

aten = torch.ops.aten
_FSDP = "torch.distributed.fsdp._fully_shard"
_DDP = "torch.nn.parallel.distributed._verify_param_shape_across_processes"
_MOVERS = (f"{_FSDP}._fsdp_init", f"{_FSDP}._fully_shard")  # the latter up to 2.12
_MESH = "memprof.training.strategies.init_device_mesh"
_COMPOSED = ("all_gather_copy_in", "split_with_sizes_copy", "chunk_cat")
_COMPILED = "chunk_cat_mixed_dtype"  # since 2.15; with gradients of one type it does what aten's operator does
_INTEGERS = (torch.int32, torch.int64)
_MOST_BUCKETS = 1 << 16
_PORT = 29500  # torchrun's default; nothing listens there
_NCCL_TIMEOUT = timedelta(minutes=10)  # the default of torch.distributed; a build without NCCL has no such name
_TORCH_DISTRIBUTED = str(Path(c10d.__file__).parent)


@contextmanager
def fake_ranks(mode: FakeOperators, recipe: Recipe, rank: int = 0) -> Iterator[None]:
    """Make this process one of the recipe's ranks within the `with` block.

    Args:
        mode: Runs the operators.
        recipe: The recipe with the strategy and the world size.
        rank: The rank.

    Raises:
        UsageError: This process is in a process group already.
    """
    with ExitStack() as stack:
        stack.enter_context(lone_group(rank, recipe.world_size))
        stack.enter_context(_operators(mode, recipe.world_size, ddp=recipe.strategy == "ddp"))
        stack.enter_context(patch(_MESH, _mesh(mode)))
        yield


@contextmanager
def fake_torchrun(mode: FakeOperators, world_size: int, rank: int) -> Iterator[ProcessGroups]:
    """Make the script one of torchrun's ranks within the `with` block.

    Args:
        mode: Runs the operators.
        world_size: The number of ranks.
        rank: The rank of the script.

    Yields:
        The process groups that the script makes.
    """
    environment = torchrun_environment(rank, world_size, ranks_of_a_machine(world_size), _PORT)
    adapt: Callable[[Any, str], None] = LoneGroup.is_asked_for
    with ExitStack() as stack:
        groups = stack.enter_context(torchrun(environment, BACKEND, make_lone_group, adapt))
        stack.enter_context(_operators(mode, world_size, ddp=True))
        for module in (dist, import_module("torch.distributed.rendezvous")):
            stack.enter_context(patch.object(module, "TCPStore", _LoneStore))
        stack.enter_context(_objects(mode))
        if mode.own_host:
            stack.enter_context(_nccl_is_here())
        yield groups


@contextmanager
def _operators(mode: FakeOperators, world_size: int, *, ddp: bool) -> Iterator[None]:
    """Make the mode run the operators that DDP and FSDP call."""
    with ExitStack() as stack:
        mode.add_plans({getattr(torch.ops.fsdp, name).default: _composed(mode) for name in _COMPOSED})
        if hasattr(torch.ops.fsdp, _COMPILED):
            mode.add_plans({getattr(torch.ops.fsdp, _COMPILED).default: _instead(mode, aten._chunk_cat.out)})
        mode.add_plans(_ranges(mode))
        stack.enter_context(dtensors_outside_modes())
        if ddp:
            mode.add_plans({aten.empty.memory_format: _real_integers(mode)})
            stack.enter_context(patch(_DDP, _verify(mode)))
        if mode.own_host:
            for module in _MOVERS:
                stack.enter_context(_replaced(module, {"_move_states_to_device": _mover(mode)}))
        else:
            stack.enter_context(_share_of_threads(world_size))
        yield


class _LoneStore(HashStore):
    """A store of one process. It replaces `TCPStore`, which waits for the other processes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()


@contextmanager
def _nccl_is_here() -> Iterator[None]:
    """Report NCCL as available, as every build with CUDA does, and accept its options."""

    class NcclOptions(SimpleNamespace):
        pass

    nccl = SimpleNamespace(Options=NcclOptions)
    with ExitStack() as stack:
        for module in (dist, c10d):
            stack.enter_context(patch.object(module, "is_nccl_available", lambda: True))
            stack.enter_context(patch.object(module, "ProcessGroupNCCL", nccl, create=True))
        stack.enter_context(patch.object(c10d, "default_pg_nccl_timeout", _NCCL_TIMEOUT, create=True))
        yield


@contextmanager
def _objects(mode: FakeOperators) -> Iterator[None]:
    """Exchange Python objects as real bytes, with the geometry of their tensors in place of the values."""
    read: Callable[..., Any] = c10d._tensor_to_object

    def received(tensor: Tensor, size: Any, group: Any) -> Any:
        if not is_fake(tensor):
            return read(tensor, size, group)
        mode.reads.guess_here(mode.place()[0], "receives an object that only another rank has: it was taken to be None")
        return None

    class Sent(ShapePickler):
        def persistent_id(self, obj: Any) -> Any:
            found = super().persistent_id(obj)
            if found is not None:
                what = "sends a tensor within a Python object, whose bytes are not counted where they are gathered"
                mode.reads.guess_here(mode.place()[0], what)
            return found

    with patch.multiple(c10d, _tensor_to_object=received, _pickler=Sent, _unpickler=ShapeUnpickler):
        yield


@contextmanager
def _share_of_threads(world_size: int) -> Iterator[None]:
    """Run kernels with the number of threads that each rank has when all ranks share this machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // world_size))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _replaced(module: str, functions: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    """Replace functions of a module, and skip those that this version of PyTorch does not have."""
    owner = import_module(module)
    with ExitStack() as stack:
        for name in [name for name in functions if hasattr(owner, name)]:
            stack.enter_context(patch.object(owner, name, functions[name]))
        yield


def _composed(mode: FakeOperators) -> Plan:
    """Return a plan that runs an operator's kernel under the dispatch mode."""

    def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with mode:
            return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)

    return run


def _ranges(mode: FakeOperators) -> dict[Any, Plan]:
    """Return plans that note the named ranges of FSDP in the log."""
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
    """Return a plan that runs another operator, which allocates the same memory."""

    def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with mode:
            operator(*args, **kwargs)

    return run


def _real_integers(mode: FakeOperators) -> Plan:
    """Return a plan that makes real tensors for the bucket order of DDP's reducer and for the bytes of Python objects.

    PyTorch reads and writes both without operators.
    """

    def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        real = kwargs.get("dtype") in _INTEGERS and len(args[0]) == 1 and args[0][0] < _MOST_BUCKETS
        real = real or (kwargs.get("dtype") is torch.uint8 and _is_for_objects())
        return (mode.run_real if real else mode.run_fake)(func, args, kwargs)

    return run


def _is_for_objects() -> bool:
    """Return whether the tensor is made for a collective of Python objects."""
    frame = sys._getframe(2)
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(_TORCH_DISTRIBUTED):
        frame = frame.f_back
    return frame.f_code.co_filename == c10d.__file__


def _verify(mode: FakeOperators) -> Callable[..., None]:
    """Return a function that allocates the same as PyTorch's check that all ranks have the same parameters.

    That is `verify_params_across_processes` in torch/csrc/distributed/c10d/reducer.cpp.
    """

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
    """Return a function that makes the device mesh with real numbers, and notes only the memory that it keeps."""

    def make(*args: Any, **kwargs: Any) -> DeviceMesh:
        with _disable_current_modes():
            mesh = init_device_mesh(*args, **kwargs)
        storage = getattr(mesh, "_rank_map", mesh.mesh).untyped_storage()  # the former since 2.10
        mode.log.allocated(storage, storage.data_ptr(), storage.nbytes(), host=mode.own_host)
        return mesh

    return make


def _mover(mode: FakeOperators) -> Callable[..., None]:
    """Return a function that moves tensors from the host to the device one by one."""

    def move(parameters: list[nn.Parameter], buffers: list[Tensor], device: torch.device) -> None:
        for tensor in (*parameters, *buffers):
            tensor.data = copy_to(tensor.detach(), mode, host=False)

    return move
