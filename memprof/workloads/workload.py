"""What is trained: a model, how to make a batch for it, and how to get a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model, its batches and its loss.

    All three callables run inside the trial, on the CPU by default; the trial moves the model and the batch
    to its device, and casts floating-point inputs where the recipe's precision asks for it.

    Attributes:
        model: builds the model, with its weights initialised.
        batch: takes a batch size and returns any nest of dicts, lists and tuples of tensors.
        loss: takes the model and a batch and returns a scalar tensor.
        scale: the knob that "the largest model" varies, e.g. `n_layers`; None where there is none.
        longest_batch: like `batch`, with every sample at the longest length that training will ever see. The
            largest batch and model are found with it, so that they hold for every batch; None where all batches
            of one size have one shape.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    scale: str | None = None
    longest_batch: Callable[[int], Any] | None = None
