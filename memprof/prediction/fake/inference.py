"""`torch.inference_mode` as `torch.no_grad`: the same memory.

Within inference mode a dispatch mode sees operators before PyTorch has taken them apart (`aten::linear`), and none of
what a device does its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def inference_without_grad() -> Iterator[None]:
    """Within the `with` block inference mode records no gradients, and nothing more."""

    def enter(self: Any) -> None:
        self._without = torch.no_grad() if self.mode else None
        if self._without is not None:
            self._without.__enter__()

    def leave(self: Any, *error: Any) -> None:
        if self._without is not None:
            self._without.__exit__(*error)

    with patch.multiple(torch.inference_mode, __enter__=enter, __exit__=leave):
        yield
