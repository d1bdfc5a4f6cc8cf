"""The figures of a document about a model's parameters and an optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from memprof.documents.comparison import Parameters, State
from memprof.optimizers.state_bytes import StateReport
from memprof.trace.storages import plain_tensors


def count_parameters(parameters: Iterable[Tensor]) -> Parameters:
    """Return how many entries the parameters have, how many of them are trained, and how many bytes they take.

    If parameters are sharded (DTensor), the entries are those of the whole model, and the bytes are those of this rank.

    Args:
        parameters: The parameters of a model, tied ones once.
    """
    given = list(parameters)
    return Parameters(
        count=sum(p.numel() for p in given),
        trainable=sum(p.numel() for p in given if p.requires_grad),
        bytes=sum(part.numel() * part.element_size() for p in given for part in plain_tensors(p)),
    )


def state_figures(report: StateReport, parameters: Parameters) -> State:
    """Return the figures of an optimizer's state, with the bytes for each trained entry.

    Args:
        report: The measured state.
        parameters: The parameters that the optimizer trains.
    """
    return State(
        bytes=report.bytes,
        bytes_per_parameter=report.bytes / parameters.trainable,
        by_dtype=report.by_dtype,
        by_device=report.device_bytes,
    )
