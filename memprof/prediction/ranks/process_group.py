"""A process group with one real member, whose collectives end at once and exchange nothing.

PyTorch's own fake process group does not work with DDP, whose reducer expects its buffers back from an all-reduce. No
fake tensor is read or written here. Memory of NCCL or gloo would belong to the process, not to the allocator.

Private API (see `memprof.torch_private`): `torch._C._distributed_c10d._create_work_from_future`, and
the names of the collectives that a Python process group overrides.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import (  # type: ignore[attr-defined]
    HashStore,
    _create_work_from_future,
)
from torch.futures import Future

from memprof.errors import UsageError
from memprof.prediction.fake.known_values import is_fake

BACKEND = "memprof"
_IN_PLACE = ("allreduce", "allreduce_coalesced", "broadcast", "reduce", "barrier")
_INTO_OTHERS = (
    *("gather", "scatter", "reduce_scatter", "alltoall", "alltoall_base", "_reduce_scatter_base"),
    *("reduce_scatter_tensor_coalesced", "allgather_into_tensor_coalesced"),
    *("all_to_all_single", "reduce_scatter_single"),  # the names since 2.13
    *("reduce_scatter_single_coalesced", "all_gather_single_coalesced"),
)


class LoneGroup(dist.ProcessGroup):
    """The process group as one of its ranks sees it.

    Args:
        rank: The rank of this process.
        size: The number of ranks.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # another overload

    def getBackendName(self) -> str:  # noqa: N802
        """Return the name under which `init_process_group` knows the backend."""
        return BACKEND

    @property
    def group_name(self) -> Any:
        """The name under which functional collectives find the group."""
        return dist.distributed_c10d._world.pg_names[self]

    def allgather(self, outputs: Any, inputs: Any, *options: Any) -> dist.Work:
        """Fill in the values of the other ranks with those of this rank, if they are known."""
        for received, sent in zip(outputs, inputs, strict=True):
            for tensor in received:
                _repeat(tensor, sent)
        return _done(outputs[0])

    def _allgather_base(self, output: Tensor, input: Tensor, *options: Any, **named: Any) -> dist.Work:
        for part in output.chunk(self.size()):
            _repeat(part, input)
        return _done([output])

    all_gather_single: Any = _allgather_base  # the name since 2.13


def _over(self: LoneGroup, received: Any = (), *arguments: Any, **named: Any) -> dist.Work:
    """End the collective without changing any tensor."""
    return _done(received if isinstance(received, list) else [received] if isinstance(received, Tensor) else [])


for _name in (*_IN_PLACE, *_INTO_OTHERS):
    setattr(LoneGroup, _name, _over)


def _repeat(output: Tensor, tensor: Tensor) -> None:
    if not is_fake(output) and not is_fake(tensor):
        output.view(-1).copy_(tensor.reshape(-1))


def _done(received: list[Any]) -> dist.Work:
    future: Future[list[Any]] = Future()
    future.set_result(received)
    return _create_work_from_future(future)  # type: ignore[no-any-return]


@contextmanager
def lone_group(rank: int, size: int) -> Iterator[None]:
    """Make a `LoneGroup` the default process group within the `with` block.

    Args:
        rank: The rank of this process.
        size: The number of ranks.

    Raises:
        UsageError: This process is in a process group already.
    """
    if dist.is_initialized():
        raise UsageError("this process is in a process group already: predict ranks in another, as the CLI does")
    excepthook = sys.excepthook  # `init_process_group` replaces it to print the rank before tracebacks
    dist.Backend.register_backend(BACKEND, _make, devices=["cpu"])
    try:
        dist.init_process_group(BACKEND, store=HashStore(), rank=rank, world_size=size)
        yield
    finally:
        sys.excepthook = excepthook
        if dist.is_initialized():
            dist.destroy_process_group()


def _make(store: Any, rank: int, size: int, timeout: Any) -> LoneGroup:
    return LoneGroup(rank, size)
