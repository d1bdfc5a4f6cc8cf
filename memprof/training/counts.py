"""What a result says of a model's parameters and of an optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from memprof.documents.comparison import Parameters, State
from memprof.optimizers.state_bytes import StateReport
from memprof.trace.storages import plain_tensors


def count_parameters(parameters: Iterable[Tensor]) -> Parameters:
    """Return the number of entries, of those that are trained, and the bytes, tied parameters once if given once.

    Of parameters in shards (DTensor) all entries of the model count, and the bytes of this rank's.
    """
    given = list(parameters)
    return Parameters(
        count=sum(p.numel() for p in given),
        trainable=sum(p.numel() for p in given if p.requires_grad),
        bytes=sum(part.numel() * part.element_size() for p in given for part in plain_tensors(p)),
    )


def state_figures(report: StateReport, parameters: Parameters) -> State:
    """Return the state with its share for each trained entry."""
    return State(
        bytes=report.bytes,
        bytes_per_parameter=report.bytes / parameters.trainable,
        by_dtype=report.by_dtype,
        by_device=report.device_bytes,
    )
