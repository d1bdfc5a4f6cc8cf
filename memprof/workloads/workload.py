"""The class `Workload`, which describes what is trained: a model, how to make a batch, and how to compute a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model, its batches and its loss.

    All callables run in the process of the trial, by default on the CPU. The trial moves the model and the batch to its
    device, and casts floating-point inputs if the precision of the recipe requires it.

    Attributes:
        model: A function that builds the model and initialises its weights.
        batch: A function that takes a batch size and returns any nesting of dicts, lists and tuples of tensors.
        loss: A function that takes the model and a batch and returns a scalar tensor.
        scale: The knob that "the largest model" varies, such as `n_layers`; None if there is none.
        longest_batch: A function like `batch` in whose batches every sample has the longest length that occurs in
            training. The largest batch and model are searched with it, so that they hold for every batch. None if all
            batches of one size have the same shape.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    scale: str | None = None
    longest_batch: Callable[[int], Any] | None = None
