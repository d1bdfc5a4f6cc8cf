"""Shares a training among ranks with PyTorch's own DDP and FSDP2 (`fully_shard`).

The process group exists before. The code that makes it decides whether the ranks are processes or simulated.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from memprof.documents.recipe import Recipe
from memprof.training.checkpointing import repeated_blocks


def distribute(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """Return the model as the recipe's strategy trains it.

    DDP wraps the model. `fully_shard` changes it in place, so that its parameters are DTensors afterwards. Each
    repeated block is a group of its own, which is gathered for its forward and again for its backward pass. All other
    parameters belong to the root's group, which stays gathered in between. These are the defaults of `fully_shard`
    and the layout of torchtitan.

    Args:
        model: The model on its device; for FSDP it may be on the host.
        recipe: The recipe with the strategy. The default process group has its world size.
        device: The device of this rank.
    """
    if recipe.strategy == "ddp":
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    if recipe.strategy == "fsdp":
        _shard(model, recipe, device)
    return model


def _shard(model: nn.Module, recipe: Recipe, device: torch.device) -> None:
    mesh = init_device_mesh(device.type, (recipe.world_size,))
    policy = MixedPrecisionPolicy()
    if recipe.precision == "amp-bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for _, block in repeated_blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def undistributed(model: nn.Module) -> nn.Module:
    """Return the user's own module, whose parameters have no wrapper's prefix in their names.

    Args:
        model: The model as `distribute` returned it.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model


def unsynchronized(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which each rank adds up its gradients by itself, if the strategy is DDP (`no_sync`).

    FSDP reduces gradients after every micro-batch, because otherwise each rank would hold the whole model's gradients.

    Args:
        model: The model as `distribute` returned it.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
