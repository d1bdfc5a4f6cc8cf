"""A process group with one real member: its collectives are over at once and exchange nothing.

PyTorch's own fake process group cannot serve DDP, whose reducer wants its buffers back from an all-reduce. Nothing of a
fake tensor is read or written here; what a collective would allocate for itself is said by `scratch`.

Private API of PyTorch, checked on 2.8.0, 2.13.0 and 2.15.0: `torch._C._distributed_c10d._create_work_from_future`, and
the names of the collectives that a Python process group overrides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import (  # type: ignore[attr-defined]
    HashStore,
    _create_work_from_future,
)
from torch.futures import Future

from memprof.errors import UsageError
from memprof.simulation.fake_values import is_fake

BACKEND = "memprof"
Scratch = Callable[[str, list[Tensor]], None]


class LoneGroup(dist.ProcessGroup):
    """The group as one of its ranks sees it.

    Args:
        rank: of this process.
        size: ranks in the group.
        scratch: called with the name of each collective and the tensors that it sends.
    """

    def __init__(self, rank: int, size: int, scratch: Scratch) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # another overload
        self._scratch = scratch

    def getBackendName(self) -> str:  # noqa: N802
        """Return the name that `init_process_group` knows."""
        return BACKEND

    @property
    def group_name(self) -> Any:
        """The name under which functional collectives find the group."""
        return dist.distributed_c10d._world.pg_names[self]

    def allreduce(self, tensors: Any, *options: Any) -> dist.Work:
        """Leave the sum as it is."""
        return self._done("allreduce", tensors, tensors)

    def broadcast(self, tensors: Any, *options: Any) -> dist.Work:
        """Keep one's own."""
        return self._done("broadcast", tensors, tensors)

    def barrier(self, *options: Any) -> dist.Work:
        """Wait for nobody."""
        return self._done("barrier", [], [])

    def allgather(self, outputs: Any, inputs: Any, *options: Any) -> dist.Work:
        """Find that all others have the same, where that is read: DDP compares the number of parameters."""
        for received, sent in zip(outputs, inputs, strict=True):
            for tensor in received:
                if not is_fake(tensor):
                    tensor.copy_(sent)
        return self._done("allgather", inputs, outputs[0])

    def _allgather_base(self, output: Tensor, tensor: Tensor, *options: Any) -> dist.Work:
        return self._done("all_gather", [tensor], [output])

    def _reduce_scatter_base(self, output: Tensor, tensor: Tensor, *options: Any) -> dist.Work:
        return self._done("reduce_scatter", [tensor], [output])

    all_gather_single: Any = _allgather_base  # the names since 2.13
    reduce_scatter_single: Any = _reduce_scatter_base

    def _done(self, collective: str, sent: list[Tensor], received: list[Tensor]) -> dist.Work:
        self._scratch(collective, sent)
        future: Future[list[Tensor]] = Future()
        future.set_result(list(received))
        return _create_work_from_future(future)  # type: ignore[no-any-return]


@contextmanager
def lone_group(rank: int, size: int, scratch: Scratch) -> Iterator[None]:
    """Within the `with` block the default process group is a lone one.

    Raises:
        UsageError: this process is in a group already.
    """
    if dist.is_initialized():
        raise UsageError("this process is in a process group already: predict ranks in another, as the CLI does")
    excepthook = sys.excepthook  # `init_process_group` puts the rank before tracebacks
    dist.Backend.register_backend(BACKEND, partial(_make, scratch), devices=["cpu"])
    try:
        dist.init_process_group(BACKEND, store=HashStore(), rank=rank, world_size=size)
        yield
    finally:
        sys.excepthook = excepthook
        if dist.is_initialized():
            dist.destroy_process_group()


def _make(scratch: Scratch, store: Any, rank: int, size: int, timeout: Any) -> LoneGroup:
    return LoneGroup(rank, size, scratch)
