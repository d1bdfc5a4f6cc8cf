"""The state of one parameter: creating it, presenting it to a kernel, saving it and loading it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .covers import Cover, Grid, GridCover, grid_shape
from .index_sets import IndexSets
from .kernels.accumulators import Accumulator, GridAccumulator, IndexSetAccumulator
from .kernels.momentum import FloatMomentum, Int8Momentum, Momentum, scale_shape
from .option_checks import momentum_dtype
from .selection import covers_of


def accumulators(state: dict[str, Any], cover: Cover, param: Tensor) -> list[Accumulator]:
    """Return a parameter's accumulators under its cover. They are zero in the first step.

    Args:
        state: the parameter's state. Accumulators are created in it if they are missing.
        cover: the parameter's cover.
        param: the parameter.

    Raises:
        ValueError: the state has accumulators of another cover.
    """
    if isinstance(cover, IndexSets):
        key, shape = "accumulator_0", cover.state_shapes(param.shape)[0]
        return [IndexSetAccumulator(_kept(state, key, shape, param), *cover.memberships(param.device))]
    assert isinstance(cover, GridCover)
    return [
        GridAccumulator(_seen(_kept(state, key, shape, param), counts), grid)
        for key, shape, grid, counts in _layout(cover, param.shape)
    ]


def _kept(state: dict[str, Any], key: str, shape: tuple[int, ...], param: Tensor) -> Tensor:
    if key not in state:
        state[key] = torch.zeros(shape, dtype=torch.float32, device=param.device)
    kept: Tensor = state[key]
    check_accumulator(kept, shape, param)
    return kept


def check_accumulator(kept: Tensor, shape: tuple[int, ...], param: Tensor) -> None:
    """Check that existing accumulators have the shape that the cover asks for.

    Args:
        kept: the accumulators in the state.
        shape: the shape that the cover asks for.
        param: the parameter.

    Raises:
        ValueError: the accumulators have another shape, so they belong to another cover.
    """
    if kept.shape != shape:
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} has accumulators of shape {tuple(kept.shape)}, but its cover "
            f"needs {shape}: a cover cannot change once training has begun"
        )


def _seen(kept: Tensor, counts: tuple[int, ...]) -> Tensor:
    return kept if kept.shape == counts else kept.view(counts)


@cache
def _layout(cover: GridCover, shape: torch.Size) -> list[tuple[str, tuple[int, ...], Grid, tuple[int, ...]]]:
    """Return the key, stored shape, grid and grid shape of each accumulator. It is cached, as each step asks for it."""
    pairs = zip(cover.state_shapes(shape), cover.grids(shape), strict=True)
    return [
        (f"accumulator_{number}", stored, grid, grid_shape(shape, grid)) for number, (stored, grid) in enumerate(pairs)
    ]


def momentum(state: dict[str, Any], group: dict[str, Any], param: Tensor) -> Momentum | None:
    """Return a parameter's momentum.

    Args:
        state: the parameter's state. Buffers are created in it, filled with zeros, if they are missing.
        group: the parameter group.
        param: the parameter.

    Returns:
        The momentum, or None if the group has none.

    Raises:
        ValueError: the state has a momentum of another dtype.
    """
    if not group["momentum"]:
        return None
    dtype = momentum_dtype(group)
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    check_momentum(state["momentum_buffer"], dtype)
    if dtype != torch.int8:
        return FloatMomentum(state["momentum_buffer"])
    if "momentum_scale" not in state:
        state["momentum_scale"] = torch.zeros(scale_shape(param.shape), device=param.device)
    return Int8Momentum(state["momentum_buffer"], state["momentum_scale"])


def check_momentum(buffer: Tensor, dtype: torch.dtype) -> None:
    """Check that an existing momentum buffer has the dtype that its group asks for.

    Args:
        buffer: the momentum buffer in the state.
        dtype: the dtype that the group asks for.

    Raises:
        ValueError: the buffer has another dtype.
    """
    if buffer.dtype != dtype:
        raise ValueError(
            f"the momentum is kept as {buffer.dtype}, but its group asks for {dtype}: momentum_dtype cannot change "
            "once training has begun"
        )


def describe_covers(group: dict[str, Any]) -> str | list[str]:
    """Return how a checkpoint describes a group's covers: by one name, or by one name per parameter.

    Args:
        group: a parameter group of the optimizer.
    """
    if isinstance(group["cover"], Cover):
        return group["cover"].name
    return [cover.name for cover in covers_of(group)]


def check_covers(groups: Sequence[dict[str, Any]], saved: Sequence[dict[str, Any]]) -> None:
    """Compare the covers of a checkpoint with those of the optimizer.

    Args:
        groups: the parameter groups of the optimizer.
        saved: the parameter groups of the checkpoint.

    Raises:
        ValueError: the covers differ, so the accumulators do not have the same meaning.
    """
    for number, (group, packed) in enumerate(zip(groups, saved, strict=False)):
        kept = packed.get("cover")
        if kept is not None and _per_parameter(kept, group) != _per_parameter(describe_covers(group), group):
            raise ValueError(
                f"the checkpoint's group {number} has cover {kept}, this optimizer's has "
                f"{describe_covers(group)}: construct it with the same cover"
            )


def _per_parameter(names: str | list[str], group: dict[str, Any]) -> list[str]:
    return [names] * len(group["params"]) if isinstance(names, str) else list(names)


def restored(saved: dict[str, Any], param: Tensor, cover: Cover, dtype: torch.dtype) -> dict[str, Any]:
    """Return a copy of a parameter's saved state, on the parameter's device and in the dtypes that SM3 keeps.

    `torch.optim.Optimizer.load_state_dict` would cast the whole state to the parameter's dtype (PyTorch issue 43706).

    Args:
        saved: the saved state, by name.
        param: the parameter.
        cover: the parameter's cover.
        dtype: the dtype of the momentum.

    Raises:
        ValueError: the accumulators do not have the shapes of the cover, or the state is another optimizer's.
    """
    if saved and not any(key.startswith("accumulator_") for key in saved):
        raise ValueError(f"the checkpoint holds another optimizer's state ({', '.join(saved)}): SM3 starts without one")
    shapes = cover.state_shapes(param.shape)
    state = {}
    for key, value in saved.items():
        kept = dtype if key == "momentum_buffer" else torch.float32
        state[key] = value.detach().to(device=param.device, dtype=kept, copy=True)
    found = [tuple(state[key].shape) for key in sorted(state) if key.startswith("accumulator_")]
    if found != [tuple(shape) for shape in shapes]:
        raise ValueError(
            f"the checkpoint has accumulators of shapes {found} for a parameter of shape "
            f"{tuple(param.shape)}, which needs {shapes}: load it into the same model"
        )
    return state
