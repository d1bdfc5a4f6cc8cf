"""A process group that passes every collective to gloo and keeps gloo's own memory out of the record.

gloo copies the tensors that it reduces and gathers, on the training's thread and on threads of its own, and it releases
the tensors that it was given some time after a collective has returned. The profiler follows the training's thread, so
blocks that another thread frees would seem to live for ever, and their number would differ in every run. So here a
collective runs in a helper thread, where the profiler does not see it. Its memory appears only in the process's figure,
as NCCL's does. The collective returns when gloo has released every tensor, so that the training's thread frees them.

Private API (see `memprof.torch_private`): `_create_work_from_future`, the names of the collectives
of a process group in Python and of gloo's backend, `Tensor._use_count` and `torch._C._storage_Use_Count`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future  # type: ignore[attr-defined]
from torch.futures import Future

from memprof.trace.storages import nested_tensors

BACKEND = "memprof_gloo"
# The collectives of a process group, and gloo's names for them. Some have new names since PyTorch 2.13.
_COLLECTIVES = {
    **{name: name for name in ("allreduce", "allreduce_coalesced", "broadcast", "reduce", "barrier")},
    **{name: name for name in ("allgather", "gather", "scatter", "reduce_scatter", "alltoall", "alltoall_base")},
    "_allgather_base": "_allgather_base",
    "_reduce_scatter_base": "_reduce_scatter_base",
    "all_gather_single": "_allgather_base",
    "reduce_scatter_single": "_reduce_scatter_base",
    "all_to_all_single": "alltoall_base",
}
# DTensor calls these with lists of tensors, which gloo takes one by one.
_COALESCED = {
    "allgather_into_tensor_coalesced": "_allgather_base",
    "reduce_scatter_tensor_coalesced": "_reduce_scatter_base",
    "all_gather_single_coalesced": "_allgather_base",
    "reduce_scatter_single_coalesced": "_reduce_scatter_base",
}
_LONGEST_SECONDS = 1.0


class Gloo(dist.ProcessGroup):
    """The group of all ranks, which communicate by gloo.

    Args:
        store: The store by which the ranks find each other.
        rank: The rank of this process.
        size: The number of ranks.
        timeout: The time after which a collective fails.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # another overload
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._helper = ThreadPoolExecutor(max_workers=1)

    def getBackendName(self) -> str:  # noqa: N802
        """Return the name under which `init_process_group` knows the backend."""
        return BACKEND

    @property
    def group_name(self) -> Any:
        """The name under which functional collectives find the group."""
        return dist.distributed_c10d._world.pg_names[self]

    def exchange(self, collective: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> dist.Work:
        """Run a collective to its end.

        Args:
            collective: The name of gloo's method.
            arguments: The positional arguments; the first holds the tensors that are written.
            options: The keyword arguments.

        Returns:
            A `Work` that is done.
        """
        given = list(nested_tensors(arguments))
        before = [*_uses(given)]
        self._helper.submit(self._wait_for, collective, arguments, options).result()
        deadline = monotonic() + _LONGEST_SECONDS
        while any(map(operator.gt, _uses(given), before)) and monotonic() < deadline:
            sleep(0)
        return _done([*nested_tensors(arguments[:1])])

    def _wait_for(self, collective: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        averages = collective == "_reduce_scatter_base" and _averages(arguments[-1])
        if averages:  # gloo of PyTorch 2.8 computes the sum instead of the mean
            arguments[-1].reduceOp = dist.ReduceOp.SUM
        getattr(self._gloo, collective)(*arguments, **options).wait()
        if averages:
            arguments[0].div_(self.size())


def _add(name: str, collective: str) -> None:
    def method(self: Gloo, *arguments: Any, **options: Any) -> dist.Work:
        return self.exchange(collective, arguments, options)

    def coalesced(self: Gloo, outputs: list[Tensor], inputs: list[Tensor], *options: Any) -> dist.Work:
        for pair in zip(outputs, inputs, strict=True):
            self.exchange(collective, (*pair, *options), {})
        return _done(outputs)

    setattr(Gloo, name, coalesced if name in _COALESCED else method)


for _name, _collective in (_COLLECTIVES | _COALESCED).items():
    _add(_name, _collective)


def join_by_gloo(store: Any, rank: int, world_size: int) -> None:
    """Make the default process group of this process.

    Args:
        store: The store by which the ranks find each other.
        rank: The rank of this process.
        world_size: The number of ranks.
    """
    maker: Callable[..., Any] = Gloo
    dist.Backend.register_backend(BACKEND, maker, devices=["cpu"])
    dist.init_process_group(BACKEND, store=store, rank=rank, world_size=world_size)


def _averages(options: Any) -> bool:
    return bool(getattr(options, "reduceOp", None) == dist.ReduceOp.AVG)


def _done(received: list[Tensor]) -> dist.Work:
    future: Future[list[Tensor]] = Future()
    future.set_result(list(received))
    return _create_work_from_future(future)  # type: ignore[no-any-return]


def _uses(tensors: list[Tensor]) -> Iterator[int]:
    """Yield, for each tensor, the number of references to it and to its storage."""
    for tensor in tensors:
        storage = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
        yield tensor._use_count() + storage  # type: ignore[attr-defined]
