"""Replaces `torch.inference_mode` by `torch.no_grad`, which takes the same memory.

Within inference mode a dispatch mode sees operators before PyTorch has decomposed them (`aten::linear`), and it sees
nothing of what a device does differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def inference_without_grad() -> Iterator[None]:
    """Make inference mode record no gradients, and do nothing else, within the `with` block."""

    def enter(self: Any) -> None:
        self._without = torch.no_grad() if self.mode else None
        if self._without is not None:
            self._without.__enter__()

    def leave(self: Any, *error: Any) -> None:
        if self._without is not None:
            self._without.__exit__(*error)

    with patch.multiple(torch.inference_mode, __enter__=enter, __exit__=leave):
        yield
