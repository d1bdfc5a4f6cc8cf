"""A multilayer perceptron on MNIST-sized input. Its steps take milliseconds, so it is the workload for a first try."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprof.workloads.workload import Workload


def mlp(n_layers: int = 4, d_model: int = 512, n_inputs: int = 784, n_classes: int = 10) -> Workload:
    """Multilayer perceptron with ReLU, on MNIST-sized input.

    Args:
        n_layers: The number of hidden layers.
        d_model: The width of a hidden layer.
        n_inputs: The number of features of one sample.
        n_classes: The number of classes, which is the width of the last layer.

    Returns:
        The workload.
    """

    def model() -> nn.Module:
        widths = [n_inputs] + [d_model] * n_layers
        hidden = [layer for m, n in pairwise(widths) for layer in (nn.Linear(m, n), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(widths[-1], n_classes))

    def batch(batch_size: int) -> dict[str, Tensor]:
        return {
            "x": torch.randn(batch_size, n_inputs),
            "labels": torch.randint(n_classes, (batch_size,)),
        }

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["labels"])

    return Workload(model=model, batch=batch, loss=loss, scale="n_layers")
