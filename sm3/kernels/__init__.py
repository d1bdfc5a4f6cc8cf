"""The kernels of a dense step, the fastest first, and the choice between them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Protocol

from . import chunked, native
from .scratch import Scratch
from .task import Task


class Kernel(Protocol):
    """One way to run a dense task in two halves. The exchange between ranks comes after the first half."""

    name: str

    def takes(self, task: Task) -> bool:
        """Return whether the kernel can run a task on this machine.

        Args:
            task: a dense task.
        """

    def automatic(self, task: Task) -> bool:
        """Return whether "auto" may choose the kernel for a task that it takes.

        Args:
            task: a dense task.
        """

    def gather(self, task: Task, scratch: Scratch) -> None:
        """Run the first half of a step; see `chunked.gather`.

        Args:
            task: a dense task.
            scratch: the source of temporaries.
        """

    def finish(self, task: Task, scratch: Scratch) -> None:
        """Run the second half of a step; see `chunked.finish`.

        Args:
            task: a dense task.
            scratch: the source of temporaries.
        """


class Chunked:
    """The portable kernel, which runs anywhere: `chunked.py`."""

    name = "chunked"

    def takes(self, task: Task) -> bool:
        """Return True, as this kernel runs every task.

        Args:
            task: a dense task.
        """
        return True

    def automatic(self, task: Task) -> bool:
        """Return True.

        Args:
            task: a dense task.
        """
        return True

    def gather(self, task: Task, scratch: Scratch) -> None:
        """See `chunked.gather`."""
        chunked.gather(task, scratch)

    def finish(self, task: Task, scratch: Scratch) -> None:
        """See `chunked.finish`."""
        chunked.finish(task, scratch)


class TritonCuda:
    """The Triton kernel on CUDA: `triton_cuda.py`, which is imported only if a tensor could need it."""

    name = "triton"

    def takes(self, task: Task) -> bool:
        """Return what `triton_cuda.takes` does, or False if Triton is not installed.

        Args:
            task: a dense task.
        """
        if not (task.param.is_cuda or "TRITON_INTERPRET" in os.environ) or find_spec("triton") is None:
            return False
        from . import triton_cuda

        return triton_cuda.takes(task)

    def automatic(self, task: Task) -> bool:
        """Return True on CUDA if a trial shows that Triton works there, and False for Triton's interpreter.

        Args:
            task: a dense task.
        """
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
    """The compiled C++ kernel on the CPU: `native.py`."""

    name = "native"

    def takes(self, task: Task) -> bool:
        """See `native.takes`."""
        return native.takes(task)

    def automatic(self, task: Task) -> bool:
        """Return True.

        Args:
            task: a dense task.
        """
        return True

    def gather(self, task: Task, scratch: Scratch) -> None:
        """See `native.gather`."""
        native.gather(task)

    def finish(self, task: Task, scratch: Scratch) -> None:
        """See `native.finish`."""
        native.finish(task)


KERNELS: tuple[Kernel, ...] = (TritonCuda(), Native(), Chunked())


def choose(task: Task, choice: str) -> Kernel:
    """Return the first kernel that can run a task.

    Args:
        task: a dense task.
        choice: "auto", or the name of the only kernel allowed.

    Raises:
        RuntimeError: the chosen kernel cannot run the task.
    """
    for kernel in KERNELS:
        if choice in ("auto", kernel.name) and kernel.takes(task) and (choice != "auto" or kernel.automatic(task)):
            return kernel
    raise RuntimeError(
        f"kernel {choice!r} cannot update a {task.param.dtype} parameter of shape {tuple(task.param.shape)} "
        f"on {task.param.device} with this cover and momentum: use kernel='auto'"
    )
