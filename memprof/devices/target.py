"""What a prediction is for: a kind of device, its generation, and the PyTorch that is to run there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Literal

from memprof.allocator.settings import AllocatorSettings

_KIB = 2**10


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the training is to run.

    Attributes:
        name: what `--device` was given; it goes into the run.
        kind: `cpu`, or `cuda` for a GPU with PyTorch's caching allocator.
        capability: compute capability, major and minor; of no meaning on a CPU.
        sm_count: multiprocessors; some kernels size their scratch by them.
        torch_version: major and minor version of the PyTorch that is to run there.
        capacity_bytes: what the allocator can get from the driver; None for without end.
        allocator: settings of the caching allocator.
        context_bytes: what the CUDA context takes of the device; None where that is not known, and then nothing is
            said of the process.
        context_range_bytes: from what to what it was seen to lie.
        context_source: where that comes from.
        late_bytes: what a training adds to the context outside the allocator.
        generic: no GPU of the catalog, but a size that stands for one.
    """

    name: str = "cpu"
    kind: Literal["cpu", "cuda"] = "cpu"
    capability: tuple[int, int] = (8, 0)
    sm_count: int = 108
    torch_version: tuple[int, int] = (2, 13)
    capacity_bytes: int | None = None
    allocator: AllocatorSettings = field(default_factory=AllocatorSettings)
    context_bytes: int | None = None
    context_range_bytes: tuple[int, int] = (0, 0)
    context_source: str = ""
    late_bytes: int = 0
    generic: bool = False

    @property
    def prefers_cudnn_attention(self) -> bool:
        """Whether attention tries cuDNN first (`check_prefer_cudnn_attention` in sdp_utils.cpp).

        So since 2.13, whose builds bring cuDNN 9.15 or newer, on data centre GPUs of compute capability 9.0 and 10.x,
        unless `TORCH_CUDNN_SDPA_DEPRIORITIZED` is set. Between 2.6 and 2.12 it depends on the build's cuDNN; flash
        attention is assumed.
        """
        wanted = os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED", "0") in ("", "0")
        return wanted and self.torch_version >= (2, 13) and self.capability[0] in (9, 10)

    @property
    def cublas_workspace_bytes(self) -> int:
        """The size of one cuBLAS workspace; 0 if `CUBLAS_WORKSPACE_CONFIG` says so.

        32 MiB from compute capability 9.0 on and 8,519,680 bytes before (`parseChosenWorkspaceSize` in
        CublasHandlePool.cpp).
        """
        pairs = re.findall(r":(\d+):(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))
        if pairs:
            return sum(int(size) * int(count) for size, count in pairs) * _KIB
        return 32 * _KIB * _KIB if self.capability >= (9, 0) else (4096 * 2 + 16 * 8) * _KIB


def parse_torch_version(text: str) -> tuple[int, int]:
    """Return `(2, 13)` for `2.13.0+cpu`."""
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError(f"{text!r} is no PyTorch version")
    return int(match[1]), int(match[2])
