"""Data loaders whose workers run in this process: what they read becomes tensors here, where it is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

from torch.utils.data import DataLoader


@contextmanager
def loaders_in_process() -> Iterator[None]:
    """Within the `with` block a `DataLoader` has no worker processes and pins no memory."""
    init: Any = DataLoader.__init__

    @wraps(init)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        args = (*args[:5], 0, *args[6:]) if len(args) > 5 else args  # the sixth is num_workers
        if "num_workers" in kwargs:
            kwargs["num_workers"] = 0
        kwargs |= {"pin_memory": False} if "pin_memory" in kwargs else {}
        for name in ("prefetch_factor", "persistent_workers", "timeout", "multiprocessing_context"):
            kwargs.pop(name, None)
        init(self, *args, **kwargs)

    with patch.object(DataLoader, "__init__", make):
        yield
