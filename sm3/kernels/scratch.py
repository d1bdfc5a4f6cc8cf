"""The work space that the kernels of one step share."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """The float32 work space of a step: flat buffers of at most one tile, dropped when the step ends."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}

    def take(self, use: str, like: Tensor) -> Tensor:
        """Return an uninitialized float32 buffer of the tile's shape, the same memory for the same use."""
        key = (use, like.device)
        numel = like.numel()
        if key not in self._buffers or self._buffers[key].numel() < numel:
            self._buffers.pop(key, None)
            self._buffers[key] = torch.empty(numel, dtype=torch.float32, device=like.device)
        return self._buffers[key][:numel].view(like.shape)
