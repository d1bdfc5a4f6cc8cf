"""Reconstructs the allocations that were made before a recording began, from the tensors that exist at that moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from memprof.optimizers.state_bytes import iter_state_storages
from memprof.trace.events import Allocation, Entry, LabelMark
from memprof.trace.storages import nested_tensors, tensor_storages
from memprof.training.labels import Labeller


def living_tensors(model: nn.Module, optimizer: Any, device: torch.device) -> list[Entry]:
    """Return the allocations of the model's and the optimizer's tensors on a device, with their labels.

    On CUDA the allocator knows how many bytes are allocated. The bytes that belong to no known tensor become one more
    allocation without a label. On the CPU the profiler does not report that memory is freed if it did not see the
    allocation (c10/core/CPUAllocator.cpp, 2.13). Gradients, which the first step frees, are therefore left out there.

    Args:
        model: The model.
        optimizer: The optimizer.
        device: The device of the recording.

    Returns:
        The allocations, followed by the marks that label them.
    """
    sizes: dict[int, int] = {}
    for storage in _storages(model, optimizer, gradients=device.type != "cpu"):
        if storage.device == device and storage.nbytes():
            sizes[storage.data_ptr()] = storage.nbytes()
    entries: list[Entry] = [Allocation(address, size) for address, size in sizes.items()]
    if device.type == "cuda":
        left = torch.cuda.memory_allocated(device) - sum(sizes.values())
        entries += [Allocation(-1, left)] if left > 0 else []
    labels = Labeller(model)
    marks: tuple[LabelMark, ...] = (
        labels.buffers(),
        labels.optimizer_state(optimizer),
        labels.gradients(),
        labels.parameters(),
    )
    return [*entries, *marks]


def _storages(model: nn.Module, optimizer: Any, gradients: bool) -> Iterator[torch.UntypedStorage]:
    parameters = list(model.parameters())
    held: list[Tensor] = [*parameters, *model.buffers()]
    held += [p.grad for p in parameters if p.grad is not None and gradients]
    held += [tensor for module in model.modules() for tensor in nested_tensors(dict(vars(module)))]
    for tensor in held:
        yield from tensor_storages(tensor)
    for storage, _ in iter_state_storages(optimizer, parameters):
        yield storage
