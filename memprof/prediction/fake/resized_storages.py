"""Storages of fake tensors that shrink to nothing and grow again, as FSDP's do between two uses of a parameter.

There is no memory to let go of, so the log is told, and whoever asks a storage for its size hears the log's.

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
    """Within the `with` block `UntypedStorage.resize_` and `size` take the storages of fake tensors, too."""
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
