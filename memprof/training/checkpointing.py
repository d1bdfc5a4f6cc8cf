"""Activation checkpointing of a model's repeated blocks, which needs no support from the model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from memprof.errors import UsageError


def checkpoint_blocks(model: nn.Module) -> list[str]:
    """Make the model recompute its repeated blocks in the backward pass, and return their names.

    Args:
        model: The model, which is changed in place.

    Raises:
        UsageError: The model has no repeated blocks.
    """
    blocks = list(repeated_blocks(model))
    if not blocks:
        raise UsageError(
            "--checkpoint-activations finds no repeated blocks; put the layers into an nn.ModuleList or nn.Sequential"
        )
    for _, block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return [name for name, _ in blocks]


def repeated_blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and the module of every repeated block of a model.

    A repeated block is a child of a `ModuleList` or a `Sequential` that has weights and a sibling of the same class.
    If such blocks are nested, only the outermost one counts.

    Args:
        module: The model, or a part of it.
        prefix: The name of that part within the model; "" for the model itself.
    """
    classes = [type(child) for child in module.children()]
    is_container = isinstance(module, (nn.ModuleList, nn.Sequential))
    for name, child in module.named_children():
        full_name = f"{prefix}.{name}" if prefix else name
        has_weights = next(child.parameters(), None) is not None
        if is_container and has_weights and classes.count(type(child)) > 1:
            yield full_name, child
        else:
            yield from repeated_blocks(child, full_name)
