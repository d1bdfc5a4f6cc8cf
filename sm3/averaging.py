"""Polyak averaging of the weights, over `torch.optim.swa_utils`.

The authors found that it helps SM3, and name the cool-down of `sm3.warmup_cooldown` as the choice that needs
no memory (google-research/sm3, README).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def polyak_average(model: nn.Module, decay: float | None = None, use_buffers: bool = False) -> AveragedModel:
    """Return a copy of a model that averages its weights: call `update_parameters(model)` after each step.

    Memory: one more copy of every parameter and buffer, `averaging_bytes(model)`, on the model's device; with
        SM3 that is hundreds of times the optimizer's own state.

    Args:
        model: the model that is trained.
        decay: None for the plain mean over all steps (Polyak and Juditsky, 1992), which is what the theory is
            about; otherwise the weight of the past in an exponential average, as in 0.999.
        use_buffers: also average buffers, such as the statistics of batch normalization.

    Raises:
        ValueError: a decay outside of [0, 1].
    """
    if decay is not None and not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must lie between 0 and 1, not {decay}")
    mean = None if decay is None else get_ema_multi_avg_fn(decay)
    return AveragedModel(model, multi_avg_fn=mean, use_buffers=use_buffers)


def averaging_bytes(model: nn.Module) -> int:
    """Return the bytes that `polyak_average` adds: parameters and buffers, and its counter."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.nbytes for tensor in tensors.values()) + torch.tensor(0).nbytes
