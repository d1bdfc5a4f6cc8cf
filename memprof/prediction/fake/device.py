"""What fake operators ask of the device that is simulated: a base that `memprof.prediction.cpu` and `.cuda` fill in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from memprof.prediction.fake.event_log import Steps
from memprof.prediction.fake.tensors import Correction, Result


class KernelMemory(Protocol):
    """What the kernels of one training take, beside what they return."""

    @property
    def doubts(self) -> list[str]:
        """Sentences on operators of which it is not known what they take."""

    def takes(self, func: Any) -> bool:
        """Say whether an operator may take something."""

    def kept(self, func: Any, backward: bool) -> int:
        """Return the bytes that an operator takes for good; `backward`: in the thread of the backward pass."""

    def scratch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: int = 0) -> Steps:
        """Return what an operator takes and gives back, in order; `made` are the bytes of what it returns."""


class PlainDevice:
    """A device whose operators return what the meta kernels return, and whose kernels take nothing for themselves.

    Attributes:
        own_host: the device has a memory apart from the host's.
    """

    own_host = False

    @property
    def corrections(self) -> Mapping[Any, Correction]:
        """By operator, what it returns here where that is not what its meta kernel returns."""
        return {}

    @property
    def results(self) -> Mapping[Any, Callable[[tuple[Any, ...]], Result]]:
        """By operator, what it returns here where PyTorch has no meta kernel of it."""
        return {}

    def workspaces(self) -> KernelMemory | None:
        """Return what kernels take for themselves; None where that is nothing."""
        return None
