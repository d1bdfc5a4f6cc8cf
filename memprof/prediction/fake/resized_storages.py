"""Lets storages of fake tensors shrink to nothing and grow again, as FSDP's do between two uses of a parameter.

A fake storage has no memory to free, so only the log notes the new size, and a program that asks for the size of the
storage gets the one in the log.

Private API of PyTorch, checked on 2.13.0: `torch.storage.TypedStorage._size`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch.storage import TypedStorage

if TYPE_CHECKING:
    from memprof.prediction.fake.event_log import EventLog


@contextmanager
def resizable_storages(log: EventLog) -> Iterator[None]:
    """Make `UntypedStorage.resize_` and `size` accept the storages of fake tensors within the `with` block.

    Args:
        log: The log that notes the sizes.
    """
    resize, size_of = torch.UntypedStorage.resize_, torch.UntypedStorage.size
    typed_size: Callable[[Any], int] = TypedStorage._size

    def resize_(storage: Any, size: int) -> Any:
        address = storage.data_ptr()
        if not log.knows(address):
            return resize(storage, size)
        log.resized(address, size)
        return storage

    def size(storage: Any) -> int:
        address = storage.data_ptr()
        return log.size_of(address) if log.knows(address) else size_of(storage)

    def entries(storage: Any) -> int:
        address = storage._untyped_storage.data_ptr()
        if not log.knows(address):
            return typed_size(storage)
        width: int = storage._element_size()
        return log.size_of(address) // width

    with (
        patch.multiple(torch.UntypedStorage, resize_=resize_, size=size),
        patch.object(TypedStorage, "_size", entries),
    ):
        yield
