"""SM3 on DTensor parameters, in 2 and 4 gloo processes, against a single process: bit for bit."""

from __future__ import annotations

import copy
import math
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
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from sm3 import SM3, Blocks, IndexSets, Slices, Union

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
SHAPES = [(7, 5), (16, 8), (3, 9), (11,), (1,), (4, 6, 5), (1, 10)]


def overlapping(shape: tuple[int, ...]) -> IndexSets:
    """Every third index, and runs of two."""
    every = torch.arange(math.prod(shape))
    sets = [every[every % 3 == left] for left in range(3)] + [every[every // 2 == pair] for pair in range(len(every))]
    return IndexSets([members for members in sets if len(members)], shape)


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
    {"cover": Blocks((3, 2))},
    {"cover": Union((Slices(), Blocks((2, -1)))), "variant": "I"},
    {"cover": {f"{number}": overlapping(shape) for number, shape in enumerate(SHAPES)}, "momentum": 0.9},
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
    optimizer = SM3([(str(number), param) for number, param in enumerate(params)], lr=0.3, **options)
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
        optimizer = SM3([(str(number), param) for number, param in enumerate(params)], lr=0.3, **options)
        for step in range(3):
            for param, grad in zip(params, gradients(step), strict=True):
                param.grad = distribute_tensor(grad, mesh, param.placements)
            optimizer.step()
        expected, states = alone(options, 3)
        for param, weights, state in zip(params, expected, states, strict=True):
            assert torch.equal(_whole(param.detach()), weights), (placed, options, param.shape)
            for key, value in state.items():
                kept = optimizer.state[param][key]
                assert torch.equal(_whole(kept), value), (placed, options, param.shape, key)
                assert kept.to_local().numel() <= value.numel()


@pytest.mark.parametrize("world", CASES)
def test_every_placement_equals_a_single_process_bit_for_bit(world) -> None:
    on_ranks(world, _all_placements)


def sharded(shape: tuple[int, ...], mesh: DeviceMesh, placements: list[Any]) -> nn.Parameter:
    """Return a parameter with a gradient of ones."""
    param = nn.Parameter(distribute_tensor(torch.zeros(shape), mesh, placements))
    param.grad = distribute_tensor(torch.ones(shape), mesh, placements)
    return param


def collectives_of(step: Callable[[], None]) -> int:
    """Return how often a step communicates."""
    calls: list[int] = []
    original = dist.all_reduce
    dist.all_reduce = lambda *arguments, **options: calls.append(1) or original(*arguments, **options)
    try:
        step()
    finally:
        dist.all_reduce = original
    return len(calls)


def _rows_stay_with_their_shard(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    params = [sharded((9, 5), mesh, [Shard(0)]) for _ in range(4)]
    optimizer = SM3(params)
    assert collectives_of(optimizer.step) == 1
    rows, columns = optimizer.state[params[0]].values()
    assert (rows.placements, columns.placements) == ((Shard(0),), (Replicate(),))
    assert rows.to_local().shape == (params[0].to_local().shape[0],)
    assert columns.to_local().shape == (5,)


def test_sharded_accumulators_stay_and_one_collective_joins_the_others() -> None:
    on_ranks(2, _rows_stay_with_their_shard)


def _one_collective(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    placements = [[Shard(0), Shard(1)], [Shard(1), Shard(0)], [Shard(0), Shard(0)], [Replicate(), Shard(0)]]
    params = [sharded((7, 5), mesh, placed) for placed in placements]
    assert collectives_of(SM3(params).step) == 1
    assert collectives_of(SM3(params, cover=Blocks((2, 2))).step) == 1
    assert collectives_of(SM3(params, cover="singleton").step) == 0
    part = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("a", "b", "c"))["b", "c"]
    narrow = [sharded((7, 5), part, [Shard(0), Shard(1)]), sharded((7, 5), part, [Shard(1), Shard(0)])]
    optimizer = SM3(narrow)
    assert [collectives_of(optimizer.step) for _ in range(2)] == [1, 1]
    assert collectives_of(SM3([*narrow, *params]).step) == 2  # one for each mesh
    assert torch.equal(narrow[0].detach().full_tensor(), narrow[1].detach().full_tensor())


def test_a_mesh_of_two_dimensions_takes_one_collective_too() -> None:
    on_ranks(4, _one_collective)


WIDE = [(9, 300), (4, 3, 100), (5, 257)]


def _int8(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    for shape in WIDE:
        single = nn.Parameter(torch.zeros(shape))
        param = nn.Parameter(distribute_tensor(torch.zeros(shape), mesh, [Shard(0)]))
        one, many = (SM3([p], momentum=0.9, momentum_dtype="int8") for p in (single, param))
        for step in range(4):
            single.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))
            param.grad = distribute_tensor(single.grad, mesh, [Shard(0)])
            one.step()
            many.step()
        assert torch.equal(param.detach().full_tensor(), single.detach())
        for key, value in one.state[single].items():
            assert torch.equal(_whole(many.state[param][key]), value), key


def test_int8_momentum_of_sharded_rows_equals_a_single_process_bit_for_bit() -> None:
    on_ranks(2, _int8)


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
    for shape, placement in [((300,), Shard(0)), ((4, 300), Shard(1)), ((4, 4), Shard(0))]:
        param = sharded(shape, mesh, [placement])
        with pytest.raises(ValueError, match=r"entries, which here lie on several ranks.*bfloat16"):
            SM3([param], momentum=0.9, momentum_dtype="int8").step()


def test_what_cannot_be_sharded_is_a_sentence() -> None:
    on_ranks(2, _refusals)
