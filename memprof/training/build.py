"""Builds the model of a trial as its recipe trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from memprof.documents.recipe import Recipe
from memprof.training.checkpointing import checkpoint_blocks
from memprof.training.step import check_trainable
from memprof.workloads.workload import Workload


def build_model(workload: Workload, recipe: Recipe, device: torch.device) -> nn.Module:
    """Build a workload's model on its device, in training mode, and wrap it if several ranks share it.

    Under FSDP the model is made on the host, and each group of parameters goes to the device when it is sharded, so
    that no device ever holds the whole model.

    Args:
        workload: The workload that makes the model.
        recipe: The recipe, with the precision, the checkpointing and the strategy.
        device: The device of this rank.

    Raises:
        UsageError: The model has nothing to train, or nothing to checkpoint.
    """
    model = workload.model()
    if recipe.strategy != "fsdp":
        model = model.to(device)
    model.train()
    if recipe.precision == "bf16":
        model.to(torch.bfloat16)
    if recipe.checkpoint_activations:
        checkpoint_blocks(model)
    check_trainable(model)
    if recipe.strategy == "single":
        return model
    from memprof.training.strategies import distribute  # half a second, for those who need it

    return distribute(model, recipe, device)


def own_module(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Return the user's own module, whose parameters have the user's names.

    Args:
        model: The model as `build_model` returned it.
        recipe: The same recipe.
    """
    if recipe.strategy == "single":
        return model
    from memprof.training.strategies import undistributed

    return undistributed(model)


def bucket_sizes(model: nn.Module) -> list[int]:
    """Return the size in bytes of each bucket in which DDP reduces gradients. The list is empty without DDP.

    Private API (see `memprof.torch_private`): `DistributedDataParallel._get_ddp_logging_data` and
    `logger.set_runtime_stats_and_log`, without which the buckets of the second step are reported only in the third.

    Args:
        model: The model as `build_model` returned it, after a training step.
    """
    if not isinstance(model, DistributedDataParallel):
        return []
    model.logger.set_runtime_stats_and_log()  # type: ignore[union-attr]
    told: Mapping[str, Any] = model._get_ddp_logging_data()
    listed = [str(told.get(name, "")) for name in ("bucket_sizes", "rebuilt_bucket_sizes")]
    return [int(size) for sizes in listed for size in sizes.split(", ") if size]
