"""SM3 on DTensor parameters, in 2 and 4 gloo processes, against a single process: bit for bit."""

from __future__ import annotations

import copy
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from sm3 import SM3, Blocks

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
SHAPES = [(7, 5), (16, 8), (3, 9), (11,), (1,), (4, 6, 5), (1, 10)]
OPTIONS = [
    {},
    {"variant": "I"},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "momentum_dtype": "bfloat16", "beta": 0.9},
    {"variant": "I", "beta": 0.9},
    {"cover": "rows"},
    {"cover": "whole"},
    {"cover": "singleton"},
    {"kernel": "chunked"},
]


def _enter(rank: int, world: int, store: str, body: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    body(rank, world, *arguments)
    dist.barrier()  # no rank leaves while another still talks to it
    os._exit(0)  # gloo's threads sometimes abort the interpreter's own way out (torch 2.13)


def on_ranks(world: int, body: Callable[..., None], *arguments: Any) -> None:
    """Run `body(rank, world, *arguments)` in `world` processes; raise what any of them raised."""
    multiprocessing.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.checkpoint", "sm3"])
    with tempfile.TemporaryDirectory() as folder:
        given = (world, f"{folder}/store", body, arguments)
        mp.start_processes(_enter, given, nprocs=world, start_method="forkserver")


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def alone(options: dict[str, Any], steps: int) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    params = [nn.Parameter(torch.full(shape, 0.5)) for shape in SHAPES]
    optimizer = SM3(params, lr=0.3, **options)
    for step in range(steps):
        for param, grad in zip(params, gradients(step), strict=True):
            param.grad = grad
        optimizer.step()
    return [param.detach() for param in params], [optimizer.state[param] for param in params]


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _placements(name: str, rank: int) -> list[Any]:
    last = Shard(rank - 1)
    return {
        "shard 0": [Shard(0)],
        "shard last": [last],
        "replicate": [Replicate()],
        "replicate x shard": [Replicate(), Shard(0)],
        "shard 0 x shard last": [Shard(0), last],
        "shard 0 x shard 0": [Shard(0), Shard(0)],
    }[name]


CASES = {
    2: [("shard 0", (2,)), ("shard last", (2,)), ("replicate", (2,))],
    4: [
        ("shard 0", (4,)),
        ("replicate x shard", (2, 2)),
        ("shard 0 x shard last", (2, 2)),
        ("shard 0 x shard 0", (2, 2)),
    ],
}


def _all_placements(rank: int, world: int) -> None:
    for placed, mesh_shape in CASES[world]:
        _equals_single_process(placed, mesh_shape)


def _equals_single_process(placed: str, mesh_shape: tuple[int, ...]) -> None:
    mesh = init_device_mesh("cpu", mesh_shape)
    for options in OPTIONS:
        params = []
        for shape in SHAPES:
            placements = _placements(placed, len(shape))
            params.append(nn.Parameter(distribute_tensor(torch.full(shape, 0.5), mesh, placements)))
        optimizer = SM3(params, lr=0.3, **options)
        for step in range(4):
            for param, grad in zip(params, gradients(step), strict=True):
                param.grad = distribute_tensor(grad, mesh, param.placements)
            optimizer.step()
        expected, states = alone(options, 4)
        for param, weights, state in zip(params, expected, states, strict=True):
            assert torch.equal(_whole(param.detach()), weights), (placed, options, param.shape)
            for key, value in state.items():
                kept = optimizer.state[param][key]
                assert torch.equal(_whole(kept), value), (placed, options, param.shape, key)
                assert kept.to_local().numel() <= value.numel()


@pytest.mark.parametrize("world", CASES)
def test_every_placement_equals_a_single_process_bit_for_bit(world) -> None:
    on_ranks(world, _all_placements)


def _rows_stay_with_their_shard(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    param = nn.Parameter(distribute_tensor(torch.zeros(9, 5), mesh, [Shard(0)]))
    param.grad = distribute_tensor(torch.ones(9, 5), mesh, [Shard(0)])
    calls = []
    original = dist.all_reduce
    dist.all_reduce = lambda *arguments, **options: calls.append(1) or original(*arguments, **options)
    others = [nn.Parameter(param.detach().clone()) for _ in range(3)]
    for other in others:
        other.grad = param.grad.clone()
    optimizer = SM3([param, *others])
    optimizer.step()
    dist.all_reduce = original
    assert len(calls) == 1
    rows, columns = optimizer.state[param].values()
    assert (rows.placements, columns.placements) == ((Shard(0),), (Replicate(),))
    assert rows.to_local().shape == (param.to_local().shape[0],)
    assert columns.to_local().shape == (5,)


def test_sharded_accumulators_stay_and_one_collective_joins_the_others() -> None:
    on_ranks(2, _rows_stay_with_their_shard)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def _train(model: nn.Module, optimizer: SM3, steps: range) -> None:
    for step in steps:
        data = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(data) ** 2).mean().backward()
        optimizer.step()


def _fsdp2(rank: int, world: int) -> None:
    single = _model()
    sharded = copy.deepcopy(single)
    for layer in sharded:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(sharded)
    one, many = (SM3(net.parameters(), lr=0.1, momentum=0.9) for net in (single, sharded))
    _train(single, one, range(5))
    _train(sharded, many, range(5))
    for expected, found in zip(single.parameters(), sharded.parameters(), strict=True):
        assert isinstance(found, DTensor)
        assert torch.equal(found.full_tensor(), expected)


@pytest.mark.parametrize("world", [2, 4])
def test_fully_shard_trains_as_a_single_process_does(world) -> None:
    """Every rank has the same batch, so the mean of the gradients is exact and so must be the weights."""
    on_ranks(world, _fsdp2)


def _sharded_model() -> tuple[nn.Module, SM3]:
    model = _model()
    fully_shard(model)
    return model, SM3(model.named_parameters(), lr=0.1, momentum=0.9, cover={"0.*": "slices"})


def _save(rank: int, world: int, folder: str) -> None:
    model, optimizer = _sharded_model()
    _train(model, optimizer, range(3))
    dcp.save(
        {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder
    )


def _load(rank: int, world: int, folder: str) -> None:
    model, optimizer = _sharded_model()
    saved = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(saved, checkpoint_id=folder)
    model.load_state_dict(saved["model"])
    set_optimizer_state_dict(model, optimizer, saved["optimizer"])
    _train(model, optimizer, range(3, 6))
    expected = _model()
    _train(expected, SM3(expected.parameters(), lr=0.1, momentum=0.9), range(6))
    for found, weights in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found.full_tensor(), weights)


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (2, 1)])
def test_a_checkpoint_reloads_onto_another_world_size(before, after, tmp_path: Path) -> None:
    on_ranks(before, _save, str(tmp_path))
    on_ranks(after, _load, str(tmp_path))


def _refusals(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    for options in ({"cover": Blocks((2, 2))}, {"momentum": 0.9, "momentum_dtype": "int8"}):
        param = nn.Parameter(distribute_tensor(torch.zeros(4, 4), mesh, [Shard(0)]))
        param.grad = distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)])
        with pytest.raises(ValueError, match="DTensor"):
            SM3([param], **options).step()


def test_what_cannot_be_sharded_is_a_sentence() -> None:
    on_ranks(2, _refusals)
