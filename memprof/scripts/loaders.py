"""Makes data loaders load in the script's own process, where the tensors that they create are recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

from torch.utils.data import DataLoader

from memprof.scripts.places import caller, place_of


@contextmanager
def loaders_in_process() -> Iterator[list[str]]:
    """Make each `DataLoader` in the `with` block work without worker processes and without pinned memory.

    Yields:
        A list that receives one sentence for each loader that asked for workers, when it is constructed.
    """
    init: Any = DataLoader.__init__
    moved: list[str] = []

    @wraps(init)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        workers = args[5] if len(args) > 5 else kwargs.get("num_workers", 0)
        if workers:
            whose = f"{workers} loader worker{'s' if workers > 1 else ''} of {place_of(caller()) or 'the script'}"
            moved.append(f"The {whose} ran in the script's own process, where what they load is recorded.")
        args = (*args[:5], 0, *args[6:]) if len(args) > 5 else args  # the sixth argument is num_workers
        if "num_workers" in kwargs:
            kwargs["num_workers"] = 0
        kwargs |= {"pin_memory": False} if "pin_memory" in kwargs else {}
        for name in ("prefetch_factor", "persistent_workers", "timeout", "multiprocessing_context"):
            kwargs.pop(name, None)
        init(self, *args, **kwargs)

    with patch.object(DataLoader, "__init__", make):
        yield moved
