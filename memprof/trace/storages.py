"""The storages behind a tensor.

A tensor subclass has the storages of its inner tensors, and a sparse tensor has those of its indices and values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is of the usual kind: not a subclass, and strided over one storage.

    Args:
        tensor: any tensor.
    """
    return type(tensor) in _PLAIN and tensor.layout is torch.strided


def tensor_storages(tensor: torch.Tensor) -> Iterator[torch.UntypedStorage]:
    """Yield each storage that a tensor keeps alive. A view yields the whole storage into which it looks.

    Args:
        tensor: any tensor.
    """
    if is_plain(tensor):
        yield tensor.untyped_storage()
        return
    for part in plain_tensors(tensor):
        yield part.untyped_storage()


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the dense tensors, each with its own storage, of which a tensor is made.

    Args:
        tensor: any tensor.
    """
    if is_plain(tensor):
        yield tensor
        return
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        inner = (getattr(tensor, name) for name in names)  # for a DTensor the device mesh is one of them
        parts: Iterable[torch.Tensor] = [part for part in inner if isinstance(part, torch.Tensor)]
    elif tensor.layout is torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    elif tensor.layout is torch.strided:
        yield tensor
        return
    else:  # mkldnn keeps its memory outside every storage
        return
    for part in parts:
        yield from plain_tensors(part)


def nested_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested dicts, lists, tuples and sets, such as model outputs and batches.

    Args:
        value: any object.
    """
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from nested_tensors(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from nested_tensors(item)


def data_pointers(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Return the addresses of the non-empty storages behind some tensors.

    Args:
        tensors: any tensors.
    """
    pointers = (storage.data_ptr() for tensor in tensors for storage in tensor_storages(tensor))
    return [pointer for pointer in pointers if pointer]
