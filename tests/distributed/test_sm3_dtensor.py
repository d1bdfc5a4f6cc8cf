"""SM3 on DTensor parameters, in 2 and 4 gloo processes, against a single process: bit for bit."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
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
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from sm3 import SM3, Blocks, IndexSets, Slices, Union
from tests import children
from tests.unit.sm3.test_sm3_memory import peak_bytes

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
    {"momentum": 0.9, "momentum_dtype": "int8", "weight_decay": 0.1},
    {"momentum": 0.9, "momentum_dtype": "int8", "cover": Blocks((3, 2)), "beta": 0.9},
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
        context = mp.start_processes(_enter, given, nprocs=world, join=False, start_method="forkserver")
        deadline = time.monotonic() + children.SECONDS
        try:
            while not context.join(max(0.0, deadline - time.monotonic())):
                assert time.monotonic() < deadline, "the ranks did not end"
        finally:
            for process in context.processes:
                process.kill()


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


def placed_on(tensor: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """Return a tensor that every rank has already as one that they share: without sending it around."""
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


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
    meshes = {shape: init_device_mesh("cpu", shape) for _, shape in CASES[world]}
    for options in OPTIONS:
        expected = alone(options, 3)
        for placed, shape in CASES[world]:
            _equals_single_process(placed, meshes[shape], options, *expected)


def _equals_single_process(
    placed: str,
    mesh: DeviceMesh,
    options: dict[str, Any],
    expected: list[torch.Tensor],
    states: list[dict[str, torch.Tensor]],
) -> None:
    params = []
    for shape in SHAPES:
        placements = _placements(placed, len(shape))
        params.append(nn.Parameter(placed_on(torch.full(shape, 0.5), mesh, placements)))
    optimizer = SM3([(str(number), param) for number, param in enumerate(params)], lr=0.3, **options)
    for step in range(3):
        for param, grad in zip(params, gradients(step), strict=True):
            param.grad = placed_on(grad, mesh, param.placements)
        optimizer.step()
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
    param = nn.Parameter(placed_on(torch.zeros(shape), mesh, placements))
    param.grad = placed_on(torch.ones(shape), mesh, placements)
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


def _scales_stay(mesh: DeviceMesh) -> None:
    cases = [((9, 300), Shard(0)), ((4, 1024), Shard(1)), ((512,), Shard(0)), ((4, 600), Shard(1)), ((300,), Shard(0))]
    kept = []
    for shape, placement in cases:
        optimizer = SM3([sharded(shape, mesh, [placement])], momentum=0.9, momentum_dtype="int8")
        optimizer.step()
        (state,) = optimizer.state.values()
        kept.append(state["momentum_scale"].placements[0])
    assert kept == [Shard(0), Shard(1), Shard(0), Replicate(), Replicate()]


def _rows_stay_with_their_shard(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    params = [sharded((9, 5), mesh, [Shard(0)]) for _ in range(4)]
    optimizer = SM3(params)
    assert collectives_of(optimizer.step) == 1
    rows, columns = optimizer.state[params[0]].values()
    assert (rows.placements, columns.placements) == ((Shard(0),), (Replicate(),))
    assert rows.to_local().shape == (params[0].to_local().shape[0],)
    assert columns.to_local().shape == (5,)
    _scales_stay(mesh)


def test_sharded_accumulators_stay_and_one_collective_joins_the_others() -> None:
    on_ranks(2, _rows_stay_with_their_shard)


def _shared_scales_take_little(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    for shape, placement in [((1000, 1500), Shard(1)), ((1_500_001,), Shard(0)), ((2, 700_001), Shard(1))]:
        optimizer = SM3([sharded(shape, mesh, [placement])], momentum=0.9, momentum_dtype="int8", beta=0.9)
        optimizer.step()
        assert peak_bytes(optimizer.step) < 4 * 2**20


def test_temporaries_stay_below_4_mib_where_ranks_share_scales() -> None:
    on_ranks(1, _shared_scales_take_little)


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


WIDE = [(9, 300), (4, 3, 100), (5, 257), (4, 1024), (2, 520), (700,), (2, 3, 20, 20), (3, 40, 30)]


def _int8(rank: int, world: int) -> None:
    for placed, mesh_shape in CASES[world]:
        mesh = init_device_mesh("cpu", mesh_shape)
        single = [nn.Parameter(torch.zeros(shape)) for shape in WIDE]
        places = [_placements(placed, len(shape)) for shape in WIDE]
        many = [nn.Parameter(placed_on(p.detach(), mesh, at)) for p, at in zip(single, places, strict=True)]
        one, other = (SM3(params, momentum=0.9, momentum_dtype="int8") for params in (single, many))
        for step in range(4):
            for param, part in zip(single, many, strict=True):
                param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
                part.grad = placed_on(param.grad, mesh, part.placements)
            one.step()
            assert collectives_of(other.step) == (placed != "replicate")
        for param, part in zip(single, many, strict=True):
            assert torch.equal(_whole(part.detach()), param.detach()), (placed, param.shape)
            for key, value in one.state[param].items():
                assert torch.equal(_whole(other.state[part][key]), value), (placed, param.shape, key)


@pytest.mark.parametrize("world", CASES)
def test_int8_momentum_equals_a_single_process_bit_for_bit_where_blocks_cross_ranks_too(world) -> None:
    on_ranks(world, _int8)


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
    shape, names = ((2, 2), ("replicate", "shard")) if world == 4 else ((world,), ("shard",))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for layer in sharded:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
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


def _int8_model() -> tuple[nn.Module, SM3]:
    """Return a model of which 2 ranks hold whole blocks of the first bias, and 4 do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 512), nn.Tanh(), nn.Linear(512, 3))
    if dist.get_world_size() > 1:
        fully_shard(model)
    named = model.named_parameters()
    return model, SM3(named, lr=0.1, momentum=0.9, momentum_dtype="int8", cover={"0.*": "slices"})


def _save(rank: int, world: int, folder: str) -> None:
    model, optimizer = _int8_model()
    _train(model, optimizer, range(3))
    dcp.save(
        {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder
    )


def _uninterrupted(rank: int, world: int, folder: str) -> None:
    model, optimizer = _int8_model()
    _train(model, optimizer, range(6))
    torch.save([param.detach() for param in model.parameters()], f"{folder}/expected.pt")


def _load(rank: int, world: int, folder: str) -> None:
    model, optimizer = _int8_model()
    saved = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(saved, checkpoint_id=folder)
    model.load_state_dict(saved["model"])
    set_optimizer_state_dict(model, optimizer, saved["optimizer"])
    _train(model, optimizer, range(3, 6))
    torch.save([_whole(param.detach()) for param in model.parameters()], f"{folder}/weights-{world}-{rank}.pt")


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2)])
def test_a_checkpoint_reloads_onto_another_world_size_and_onto_a_single_process(before, after, tmp_path: Path) -> None:
    on_ranks(before, _save, str(tmp_path))
    on_ranks(after, _load, str(tmp_path))
    on_ranks(1, _uninterrupted, str(tmp_path))
    on_ranks(1, _load, str(tmp_path))
    expected = torch.load(tmp_path / "expected.pt")
    for saved in ["weights-1-0.pt", *(f"weights-{after}-{rank}.pt" for rank in range(after))]:
        assert all(map(torch.equal, torch.load(tmp_path / saved), expected)), saved


def _wide_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 10))


TWO_DIMENSIONAL = [
    {},
    {"variant": "I"},
    {"momentum": 0.9, "momentum_dtype": "int8"},
    {"cover": Blocks((2, 2)), "momentum": 0.9},
    {"cover": Union((Slices(), Blocks((4, -1)))), "variant": "I"},
]


def _two_dimensional(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Return a model of which both mesh dimensions cut the same dimension of the first layer, unevenly."""
    model = parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["data"])


def _places(mesh: DeviceMesh) -> list[torch.Tensor]:
    """Return, for each parameter, which of its entries this rank holds."""
    model = _wide_model()
    for param in model.parameters():
        param.data = torch.arange(param.numel(), dtype=torch.float32).view(param.shape)
    return [param.detach().to_local().long() for param in _two_dimensional(model, mesh).parameters()]


def _tensor_parallel(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    places = _places(mesh)
    for options in TWO_DIMENSIONAL:
        single = _wide_model()
        model = _two_dimensional(copy.deepcopy(single), mesh)
        one, many = (SM3(net.parameters(), lr=0.1, **options) for net in (single, model))
        for step in range(4):
            for expected, found, place in zip(single.parameters(), model.parameters(), places, strict=True):
                expected.grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(step))
                found.grad = torch.zeros_like(found)
                found.grad.to_local().copy_(expected.grad.flatten()[place])
            one.step()
            assert collectives_of(many.step) == 1
        for expected, found, place in zip(single.parameters(), model.parameters(), places, strict=True):
            assert torch.equal(found.detach().to_local(), expected.detach().flatten()[place]), (options, found)
            for key, value in one.state[expected].items():
                assert torch.equal(_whole(many.state[found][key]), value), (options, found.placements, key)


def test_fsdp_with_tensor_parallelism_equals_a_single_process_bit_for_bit() -> None:
    on_ranks(4, _tensor_parallel)


def _refusals(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    for shape, placement in [((4, 300), Shard(1)), ((4, 4), Shard(0))]:
        param = sharded(shape, mesh, [placement])
        with pytest.raises(ValueError, match=r"cannot share the scales of int8 momentum.*variant='II'"):
            SM3([param], momentum=0.9, momentum_dtype="int8", variant="I").step()


def test_what_cannot_be_sharded_is_a_sentence() -> None:
    on_ranks(2, _refusals)
