"""Refuses calls that a simulated GPU cannot answer, in one sentence with the call and the line that makes it."""

from __future__ import annotations

from typing import Any, NoReturn

from memprof.errors import UsageError
from memprof.scripts.places import caller, place_of

_GRAPHS = "CUDA graphs keep a memory pool of their own that is not modelled; capture none in a prediction"
_POOLS = "memory pools and allocators other than PyTorch's own are not modelled"
_RECORDED = "there is no recorded history to take; memprof writes the trace of a prediction itself (`--export-trace`)"
_NO_READING = "a simulated GPU has no sensors and no load to read"
_BESIDE = "memory taken beside PyTorch's tensors is not modelled"
PEERS = "only one GPU is simulated in each process"

# The reason for each refused name in `torch.cuda`.
REFUSED: dict[str, str] = {
    "CUDAGraph": _GRAPHS,
    "graph": _GRAPHS,
    "graph_pool_handle": _GRAPHS,
    "make_graphed_callables": _GRAPHS,
    "MemPool": _POOLS,
    "use_mem_pool": _POOLS,
    "CUDAPluggableAllocator": _POOLS,
    "change_current_allocator": _POOLS,
    "caching_allocator_alloc": _BESIDE,
    "caching_allocator_delete": _BESIDE,
    "caching_allocator_enable": "the caching allocator cannot be switched off",
    "caching_allocator_disabled": "the caching allocator cannot be switched off",
    "GreenContext": "green contexts are not modelled",
    "memory_snapshot": _RECORDED,
    "host_memory_stats": "PyTorch's allocator of pinned memory is not modelled",
    "host_memory_stats_as_nested_dict": "PyTorch's allocator of pinned memory is not modelled",
    "memory_usage": _NO_READING,
    "utilization": _NO_READING,
    "temperature": _NO_READING,
    "power_draw": _NO_READING,
    "clock_rate": _NO_READING,
    "current_blas_handle": "there is no cuBLAS behind a simulated GPU",
    "current_solver_handle": "there is no cuSOLVER behind a simulated GPU",
    "get_stream_from_external": "there is no stream of another library",
    "ExternalStream": "there is no stream of another library",
}
REFUSED_OF_MEMORY: dict[str, str] = {
    "_record_memory_history": _RECORDED,
    "_snapshot": _RECORDED,
    "_dump_snapshot": _RECORDED,
    "_save_segment_usage": _RECORDED,
    "_save_memory_usage": _RECORDED,
    "_use_uvm": "managed memory is not modelled",
}
REFUSED_OF_ACCELERATOR: dict[str, str] = {"Graph": _GRAPHS}
_LEGACY_STORAGE = "storages of the old kind are not made on a simulated GPU; make a tensor"
_ELSE = "a simulated GPU has no answer to it"
# These calls change the memory that a program takes, so its figures are wrong even if it catches the error.
_OF_MEMORY = frozenset((_GRAPHS, _POOLS, _BESIDE))
memory_refusals: list[UsageError] = []  # the refusals of this kind in this process so far


class Refusal:
    """Replaces a function or a class, and raises an error when it is called.

    Args:
        name: The name by which the user's code calls it.
        reason: The reason why the call cannot be answered.
    """

    def __init__(self, name: str, reason: str = _ELSE) -> None:
        self.__name__ = self.__qualname__ = name
        self._reason = reason

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise the error.

        Raises:
            UsageError: Always raised.
        """
        refuse(self.__name__, self._reason)


def refuse(name: str, reason: str) -> NoReturn:
    """Raise the error for a call that cannot be answered.

    Args:
        name: The name by which the user's code calls it.
        reason: The reason why the call cannot be answered.

    Raises:
        UsageError: Always raised.
    """
    place = place_of(caller())
    where = f" ({place})" if place else ""
    error = UsageError(f"{name} cannot be predicted{where}: {reason}")
    if reason in _OF_MEMORY:
        memory_refusals.append(error)
    raise error


def refusal_of(name: str, original: object, reason: str = _ELSE) -> Any:
    """Return the replacement of a function, or of a class: that is a class, for annotations and `isinstance`.

    Args:
        name: The name by which the user's code calls it.
        original: The function or class that is replaced.
        reason: The reason why the call cannot be answered.
    """
    refusal = Refusal(name, reason)
    if not isinstance(original, type):
        return refusal
    module, _, own = name.rpartition(".")
    return type(own, (), {"__new__": lambda cls, *args, **kwargs: refusal(), "__module__": module})


def legacy_storage(name: str, original: object) -> Any:
    """Return the replacement of a class such as `torch.cuda.FloatStorage`, which refuses to make storages.

    Args:
        name: The name of the class in `torch.cuda`.
        original: The class.
    """
    return refusal_of(f"torch.cuda.{name}", original, _LEGACY_STORAGE)
