"""The base class of simulated devices, which `memprof.prediction.cpu` and `memprof.prediction.cuda` implement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from memprof.prediction.fake.event_log import Steps
from memprof.prediction.fake.tensors import Correction, Result


class KernelMemory(Protocol):
    """The memory that the kernels of one training take, beside their outputs."""

    @property
    def doubts(self) -> list[str]:
        """Sentences on operators whose own memory is estimated or unknown."""

    def takes(self, func: Any) -> bool:
        """Return whether an operator may take memory for itself.

        Args:
            func: The operator's overload.
        """

    def kept(self, func: Any, backward: bool) -> int:
        """Return the bytes that a library allocates for an operator and keeps.

        Args:
            func: The operator's overload.
            backward: Whether it runs in the thread of the backward pass.
        """

    def scratch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: int = 0) -> Steps:
        """Return the blocks that an operator takes and gives back, in order.

        Args:
            func: The operator's overload.
            args: Its arguments.
            kwargs: Its keyword arguments.
            made: The bytes of its outputs.
        """


class PlainDevice:
    """A device whose operators return what the meta kernels return, and whose kernels take no memory for themselves.

    Attributes:
        own_host: Whether the device has a memory of its own beside the host's.
    """

    own_host = False

    @property
    def corrections(self) -> Mapping[Any, Correction]:
        """For each operator that differs from its meta kernel, the function that corrects the result."""
        return {}

    @property
    def results(self) -> Mapping[Any, Callable[[tuple[Any, ...]], Result]]:
        """For each operator without a meta kernel, the function that returns its result."""
        return {}

    def workspaces(self) -> KernelMemory | None:
        """Return the memory that kernels take for themselves; None if they take none."""
        return None
