"""Polyak averaging of the weights, built on `torch.optim.swa_utils`.

The authors found that averaging helps SM3. They name the cool-down of `sm3.warmup_cooldown` as the alternative that
needs no memory (google-research/sm3, README).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def polyak_average(model: nn.Module, decay: float | None = None, use_buffers: bool = False) -> AveragedModel:
    """Return a copy of a model that averages the model's weights.

    Call `update_parameters(model)` on the copy after each training step. The copy takes as much memory as every
    parameter and buffer of the model (`averaging_bytes(model)`), on the model's device. With SM3 that is hundreds of
    times the optimizer's own state.

    Args:
        model: the model that is trained.
        decay: None for the plain mean over all steps (Polyak and Juditsky, 1992), which the theory is about. Otherwise
            it is the weight of the past in an exponential average, for example 0.999.
        use_buffers: whether to average buffers too, such as the statistics of batch normalization.

    Returns:
        The averaged model, on the same device as `model`.

    Raises:
        ValueError: the decay does not lie between 0 and 1.
    """
    if decay is not None and not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must lie between 0 and 1, not {decay}")
    mean = None if decay is None else get_ema_multi_avg_fn(decay)
    return AveragedModel(model, multi_avg_fn=mean, use_buffers=use_buffers)


def averaging_bytes(model: nn.Module) -> int:
    """Return the bytes that `polyak_average` adds: the parameters, the buffers and the averaging counter.

    Args:
        model: the model that is trained. A tensor that two modules share counts once.
    """
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.nbytes for tensor in tensors.values()) + torch.tensor(0).nbytes
