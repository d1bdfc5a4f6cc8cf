"""The target of a prediction: a kind of device, its generation, and the version of PyTorch that is to run there."""

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
        name: the name that `--device` was given, which is recorded in the run.
        title: the driver's name of the GPU.
        kind: `cpu`, or `cuda` for a GPU with PyTorch's caching allocator.
        capability: the compute capability, major and minor; it has no meaning on a CPU.
        sm_count: the number of multiprocessors, on which the scratch memory of some kernels depends.
        torch_version: the major and minor version of the PyTorch that is to run there.
        capacity_bytes: the memory that the allocator can get from the driver; None means that it is unlimited.
        allocator: the settings of the caching allocator.
        context_bytes: the memory that the CUDA context takes; None if it is not known, and then no figure of the
            process is given.
        context_range_bytes: the lower and the upper limit between which the context was seen to lie.
        context_source: where these figures come from.
        late_bytes: the memory that a training adds to the context outside the allocator.
        generic: whether this is not a GPU of the catalog but a size that stands for one.
    """

    name: str = "cpu"
    title: str = ""
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
    def total_bytes(self) -> int | None:
        """What the driver reports as the device's memory; None for without end."""
        if self.capacity_bytes is None:
            return None
        return self.capacity_bytes + (self.context_bytes or 0) + self.late_bytes

    @property
    def prefers_cudnn_attention(self) -> bool:
        """Whether attention tries cuDNN first (`check_prefer_cudnn_attention` in sdp_utils.cpp).

        It does since 2.13, whose builds bring cuDNN 9.15 or newer, on data centre GPUs of compute capability 9.0 and
        10.x, unless `TORCH_CUDNN_SDPA_DEPRIORITIZED` is set. From 2.6 to 2.12 it depends on the build's cuDNN, and
        flash attention is assumed.
        """
        wanted = os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED", "0") in ("", "0")
        return wanted and self.torch_version >= (2, 13) and self.capability[0] in (9, 10)

    @property
    def cublas_workspace_bytes(self) -> int:
        """The size of one cuBLAS workspace; 0 if `CUBLAS_WORKSPACE_CONFIG` says so.

        It is 32 MiB from compute capability 9.0 on and 8,519,680 bytes before (`parseChosenWorkspaceSize` in
        CublasHandlePool.cpp).
        """
        pairs = re.findall(r":(\d+):(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))
        if pairs:
            return sum(int(size) * int(count) for size, count in pairs) * _KIB
        return 32 * _KIB * _KIB if self.capability >= (9, 0) else (4096 * 2 + 16 * 8) * _KIB


def parse_torch_version(text: str) -> tuple[int, int]:
    """Return the major and minor version in a version text, for example `(2, 13)` for `2.13.0+cpu`.

    Args:
        text: the version of PyTorch.

    Raises:
        ValueError: the text is not a version.
    """
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a PyTorch version")
    return int(match[1]), int(match[2])
