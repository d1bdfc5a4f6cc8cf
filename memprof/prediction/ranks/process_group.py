"""A process group with one real member, whose collectives finish at once and assume what the other ranks send.

PyTorch's own fake process group cannot serve DDP, whose reducer expects its buffers back from an all-reduce. The
collectives never read or write the values of fake tensors. Where values are known, every other rank is assumed to send
what this one has. What only another rank can know (such as a broadcast from it) is unknown afterwards. The memory that
NCCL or gloo would allocate for themselves is not counted here, as it belongs to the process. What PyTorch allocates to
call NCCL (`ProcessGroupNCCL.cpp`) is allocated here too: the flat buffer of a list of tensors, and the number that a
barrier reduces.

Private API (see `memprof.torch_private`): `torch._C._distributed_c10d._create_work_from_future`, and
the names of the collectives that a Python process group overrides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import (  # type: ignore[attr-defined]
    HashStore,
    _create_work_from_future,
)
from torch.futures import Future
from torch.utils._python_dispatch import _disable_current_modes

from memprof.errors import UsageError
from memprof.prediction.fake.known_values import is_fake, make_unknown

BACKEND = "memprof"
_CPU, _CUDA = torch.device("cpu"), torch.device("cuda")
_GROWS: Mapping[Any, Callable[[Tensor, int], Tensor]] = {
    dist.ReduceOp.SUM: lambda value, size: value * size,
    dist.ReduceOp.PRODUCT: lambda value, size: value**size,
}


_ProcessGroup: Any = dist.ProcessGroup  # the stubs have two signatures of each collective


class LoneGroup(_ProcessGroup):  # type: ignore[misc]
    """A process group in which only this rank exists. The other ranks are assumed to have the same values.

    Args:
        rank: The rank of this process.
        size: The number of ranks in the group.

    Attributes:
        on_nccl: Whether the training sees a group of NCCL.
        on_gloo: Whether the training sees a group of gloo, or one that uses gloo for tensors on the host.
    """

    on_nccl = False
    on_gloo = True
    _name = BACKEND

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)

    def is_asked_for(self, backend: str) -> None:
        """Take the role of the backend that the training asks for.

        Args:
            backend: `nccl`, `gloo`, `cpu:gloo,cuda:nccl`, or `undefined`, which means the same as the third.
        """
        undefined = backend == dist.Backend.UNDEFINED
        self._name = backend
        self.on_nccl = torch.cuda.is_available() and (undefined or "nccl" in backend)
        self.on_gloo = not self.on_nccl or undefined or "gloo" in backend

    def getBackendName(self) -> str:  # noqa: N802
        """Return the name for DDP's logger. Its C++ code would expect gloo's or NCCL's classes under their names."""
        return BACKEND

    def _get_backend_name(self) -> str:
        """Return the name for Python code, which is the backend that the training asked for."""
        return self._name

    @property
    def group_name(self) -> Any:
        """The name under which functional collectives find the group."""
        return dist.distributed_c10d._world.pg_names[self]

    @property
    def _device_types(self) -> list[torch.device]:
        return [*([_CPU] if self.on_gloo else []), *([_CUDA] if self.on_nccl else [])]

    def _get_backend(self, device: torch.device) -> LoneGroup:
        return self

    supports_splitting = False

    # Collectives, as the classes of `torch.distributed` call them

    def allgather(self, outputs: Any, inputs: Any, *options: Any, **named: Any) -> dist.Work:
        """Fill every rank's output with this rank's input, as all ranks are assumed to send the same."""
        for received, sent in zip(outputs, inputs, strict=True):
            self._flatten(received)
            for tensor in received:
                _receive(tensor, sent)
        return _done(outputs[0])

    def _allgather_base(self, output: Tensor, input: Tensor, *options: Any, **named: Any) -> dist.Work:
        if not is_fake(output):
            for part in output.chunk(self.size()):
                _receive(part, input)
        return _done([output])

    all_gather_single: Any = _allgather_base  # the name since 2.13

    def allgather_into_tensor_coalesced(self, outputs: Any, inputs: Any, *options: Any, **named: Any) -> dist.Work:
        """Fill every rank's part of each output with this rank's input, tensor by tensor."""
        for output, sent in zip(outputs, inputs, strict=True):
            self._allgather_base(output, sent)
        return _done(list(outputs))

    all_gather_single_coalesced: Any = allgather_into_tensor_coalesced

    def allreduce(self, tensors: Any, options: Any = None, *more: Any, **named: Any) -> dist.Work:
        """Reduce tensors that are assumed to have the same values on all ranks."""
        for tensor in tensors:
            self._reduce(tensor, options or named.get("opts"))
        return _done(list(tensors))

    allreduce_coalesced: Any = allreduce

    def reduce(self, tensors: Any, options: Any = None, *more: Any, **named: Any) -> dist.Work:
        """Reduce the tensors if this rank is the root. Otherwise they keep their values."""
        options = options or named.get("opts")
        if options is not None and options.rootRank == self.rank():
            return self.allreduce(tensors, options)
        return _done(list(tensors))

    def broadcast(self, tensors: Any, options: Any = None, *more: Any, **named: Any) -> dist.Work:
        """Leave the tensors as they are if this rank sends. Otherwise their values become unknown."""
        options = options or named.get("opts")
        if options is not None and options.rootRank != self.rank():
            for tensor in tensors:
                make_unknown(tensor)
        return _done(list(tensors))

    def gather(self, outputs: Any, inputs: Any, *options: Any, **named: Any) -> dist.Work:
        """Fill every rank's output with this rank's input, if this rank is the root."""
        for received, sent in zip(outputs, inputs, strict=False):
            for tensor in received:
                _receive(tensor, sent)
        return _done(list(outputs[0]) if outputs else [])

    def scatter(self, outputs: Any, inputs: Any, options: Any = None, *more: Any, **named: Any) -> dist.Work:
        """Take this rank's part if this rank is the root. Otherwise the values of the output become unknown."""
        for number, output in enumerate(outputs):
            _receive(output, inputs[number][self.rank()] if inputs else None)
        return _done(list(outputs))

    def reduce_scatter(self, outputs: Any, inputs: Any, options: Any = None, *more: Any, **named: Any) -> dist.Work:
        """Reduce this rank's part of the inputs into the output."""
        for output, given in zip(outputs, inputs, strict=True):
            self._flatten(given)
            _receive(output, given[self.rank()])
            self._reduce(output, options or named.get("opts"))
        return _done(list(outputs))

    def _reduce_scatter_base(
        self, output: Tensor, input: Tensor, options: Any = None, *more: Any, **named: Any
    ) -> dist.Work:
        if not is_fake(output):
            _receive(output, input.chunk(self.size())[self.rank()])
            self._reduce(output, options or named.get("opts"))
        return _done([output])

    reduce_scatter_single: Any = _reduce_scatter_base

    def reduce_scatter_tensor_coalesced(
        self, outputs: Any, inputs: Any, options: Any = None, *more: Any, **named: Any
    ) -> dist.Work:
        """Reduce this rank's part of each input into its output, tensor by tensor."""
        for output, given in zip(outputs, inputs, strict=True):
            self._reduce_scatter_base(output, given, options or named.get("opts"))
        return _done(list(outputs))

    reduce_scatter_single_coalesced: Any = reduce_scatter_tensor_coalesced

    def alltoall(self, outputs: Any, inputs: Any, *options: Any, **named: Any) -> dist.Work:
        """Fill every output with the input that this rank has for itself."""
        for output in outputs:
            _receive(output, inputs[self.rank()])
        return _done(list(outputs))

    def alltoall_base(self, output: Tensor, input: Tensor, *options: Any, **named: Any) -> dist.Work:
        """Fill the output with this rank's input, as the parts that the ranks exchange are assumed to be the same."""
        _receive(output, input)
        return _done([output])

    all_to_all_single: Any = alltoall_base

    def barrier(self, options: Any = None, *more: Any, **named: Any) -> dist.Work:
        """Return at once. On NCCL this allocates the number that NCCL reduces for a barrier."""
        device = getattr(options or named.get("opts"), "device", None)
        if self.on_nccl and device is not None and device.type == "cuda":
            torch.zeros(1, device=device)
        return _done([])

    def monitored_barrier(self, *arguments: Any, **named: Any) -> None:
        """Return at once, because no other rank exists."""

    def send(self, tensors: Any, *arguments: Any, **named: Any) -> dist.Work:
        """Send nothing, because no other rank exists."""
        return _done(list(tensors))

    def recv(self, tensors: Any, *arguments: Any, **named: Any) -> dist.Work:
        """Make the values of the tensors unknown, because only the sender knows them."""
        for tensor in tensors:
            make_unknown(tensor)
        return _done(list(tensors))

    recv_anysource: Any = recv

    def _start_coalescing(self, device: torch.device) -> None:
        """Do nothing, because the collectives that follow run one by one."""

    def _end_coalescing(self, device: torch.device) -> dist.Work:
        return _done([])

    def _flatten(self, tensors: Sequence[Tensor]) -> None:
        """Allocate the flat buffer through which PyTorch passes a list of tensors to NCCL (`newLikeFlat`)."""
        if self.on_nccl and tensors and all(tensor.numel() == tensors[0].numel() for tensor in tensors):
            tensors[0].new_empty((len(tensors), *tensors[0].shape))

    def _reduce(self, tensor: Tensor, options: Any) -> None:
        operation = getattr(options, "reduceOp", None)
        grown = next((grow for kind, grow in _GROWS.items() if operation == kind), None)
        if grown is not None and not is_fake(tensor):
            with _aside():
                tensor.copy_(grown(tensor, self.size()))


@contextmanager
def _aside() -> Iterator[None]:
    """Keep what runs within the `with` block out of the simulated training."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def _receive(output: Tensor, sent: Tensor | None) -> None:
    """Copy known values to the output. With fake values, or None for values unknown here, it becomes unknown."""
    if is_fake(output):
        return
    if sent is None or is_fake(sent) or sent.numel() != output.numel():
        make_unknown(output)
        return
    with _aside():
        output.copy_(sent.reshape(output.shape))


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
    excepthook = sys.excepthook  # `init_process_group` puts the rank before tracebacks
    dist.Backend.register_backend(BACKEND, make_lone_group, devices=["cpu"])
    try:
        dist.init_process_group(BACKEND, store=HashStore(), rank=rank, world_size=size)
        yield
    finally:
        sys.excepthook = excepthook
        if dist.is_initialized():
            dist.destroy_process_group()


def make_lone_group(store: Any, rank: int, size: int, timeout: Any) -> LoneGroup:
    """Return a process group. PyTorch calls the function of a backend with these arguments."""
    return LoneGroup(rank, size)
