"""The temporary buffers that the kernels of one step share."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """The float32 buffers of a step. They are flat, hold at most one tile each, and are freed when the step ends."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}

    def take(self, use: str, like: Tensor) -> Tensor:
        """Return an uninitialized float32 buffer of a tile's shape.

        Args:
            use: the purpose of the buffer. Calls with the same purpose return the same memory.
            like: a tensor with the shape and the device of the result.
        """
        key = (use, like.device)
        numel = like.numel()
        if key not in self._buffers or self._buffers[key].numel() < numel:
            self._buffers.pop(key, None)
            self._buffers[key] = torch.empty(numel, dtype=torch.float32, device=like.device)
        return self._buffers[key][:numel].view(like.shape)
