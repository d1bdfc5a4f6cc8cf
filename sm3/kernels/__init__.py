"""The kernels of a dense step, fastest first, and which of them runs."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Protocol

from . import chunked, native
from .scratch import Scratch
from .task import Task


class Kernel(Protocol):
    """One way to run a dense task, with the exchange between ranks after the first half."""

    name: str

    def takes(self, task: Task) -> bool:
        """Say whether it can run this task here."""

    def automatic(self, task: Task) -> bool:
        """Say whether "auto" may choose it for a task that it takes."""

    def gather(self, task: Task, scratch: Scratch) -> None:
        """Run the first half: see `chunked.gather`."""

    def finish(self, task: Task, scratch: Scratch) -> None:
        """Run the second half: see `chunked.finish`."""


class Chunked:
    """Runs anywhere: `chunked.py`."""

    name = "chunked"

    def takes(self, task: Task) -> bool:
        """Say yes."""
        return True

    def automatic(self, task: Task) -> bool:
        """Say yes."""
        return True

    def gather(self, task: Task, scratch: Scratch) -> None:
        """See `chunked.gather`."""
        chunked.gather(task, scratch)

    def finish(self, task: Task, scratch: Scratch) -> None:
        """See `chunked.finish`."""
        chunked.finish(task, scratch)


class TritonCuda:
    """Triton on CUDA: `triton_cuda.py`, imported only when a tensor could need it."""

    name = "triton"

    def takes(self, task: Task) -> bool:
        """See `triton_cuda.takes`; no without Triton."""
        if not (task.param.is_cuda or "TRITON_INTERPRET" in os.environ) or find_spec("triton") is None:
            return False
        from . import triton_cuda

        return triton_cuda.takes(task)

    def automatic(self, task: Task) -> bool:
        """Say yes on CUDA, where a trial shows that Triton works; not for the interpreter."""
        from . import triton_cuda

        return task.param.is_cuda and triton_cuda.works(task.param.device)

    def gather(self, task: Task, scratch: Scratch) -> None:
        """See `triton_cuda.gather`."""
        from . import triton_cuda

        triton_cuda.gather(task)

    def finish(self, task: Task, scratch: Scratch) -> None:
        """See `triton_cuda.finish`."""
        from . import triton_cuda

        triton_cuda.finish(task)


class Native:
    """Compiled C++ on the CPU: `native.py`."""

    name = "native"

    def takes(self, task: Task) -> bool:
        """See `native.takes`."""
        return native.takes(task)

    def automatic(self, task: Task) -> bool:
        """Say yes."""
        return True

    def gather(self, task: Task, scratch: Scratch) -> None:
        """See `native.gather`."""
        native.gather(task)

    def finish(self, task: Task, scratch: Scratch) -> None:
        """See `native.finish`."""
        native.finish(task)


KERNELS: tuple[Kernel, ...] = (TritonCuda(), Native(), Chunked())


def choose(task: Task, choice: str) -> Kernel:
    """Return the first kernel that takes a task.

    Args:
        task: a dense task.
        choice: "auto", or the name of the only kernel allowed.

    Raises:
        RuntimeError: the chosen kernel does not take it.
    """
    for kernel in KERNELS:
        if choice in ("auto", kernel.name) and kernel.takes(task) and (choice != "auto" or kernel.automatic(task)):
            return kernel
    raise RuntimeError(
        f"kernel {choice!r} cannot update a {task.param.dtype} parameter of shape {tuple(task.param.shape)} "
        f"on {task.param.device} with this cover and momentum: use kernel='auto'"
    )
