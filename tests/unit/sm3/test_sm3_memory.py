"""What a step of SM3 allocates beside its state, counted in PyTorch's own allocator, kernels included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sm3 import SM3, Blocks, IndexSets, Slices, Union
from sm3.kernels import tiles
from tests.step_memory import peak_bytes

MIB = 2**20


def test_the_measure_sees_a_temporary_of_a_kernel() -> None:
    half, single = torch.ones(MIB, dtype=torch.bfloat16), torch.ones(MIB)
    assert peak_bytes(lambda: half.add_(single)) >= 4 * MIB


SHAPES = [
    (4096, 4096),
    (2, 5_000_000),
    (5_000_000, 2),
    (3_000_000,),
    (256, 256, 3, 3),
    (4, 500, 2000),
    (1, 8, 1, 3, 200_000),
]


def second_step_peak(shape, dtype=torch.float32, **options) -> int:
    param = nn.Parameter(torch.zeros(shape, dtype=dtype))
    param.grad = torch.full(shape, 0.5, dtype=dtype)
    optimizer = SM3([param], **options)
    optimizer.step()
    return peak_bytes(optimizer.step)


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("kernel", ["auto", "chunked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_temporaries_of_a_step_stay_below_4_mib(shape, kernel, variant) -> None:
    assert second_step_peak(shape, kernel=kernel, variant=variant) < 4 * MIB


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "momentum_dtype": "bfloat16"},
        {"momentum": 0.9, "momentum_dtype": "int8"},
        {"variant": "I"},
        {"beta": 0.9, "weight_decay": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", ["auto", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_so_do_those_of_every_option(options, dtype, kernel) -> None:
    assert second_step_peak((3000, 1500), dtype, kernel=kernel, **options) < 4 * MIB


@pytest.mark.parametrize("momentum_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(2, 2_000_000), (3, 40_000, 20), (600, 6000), (200, 30, 300), (1_000_001,)], ids=str)
def test_so_do_those_of_momentum_on_any_shape(shape, momentum_dtype) -> None:
    options = {"momentum": 0.9, "momentum_dtype": momentum_dtype}
    assert second_step_peak(shape, kernel="chunked", **options) < 4 * MIB


def overlapping_sets(shape) -> IndexSets:
    """Eight sets for each index."""
    every = torch.arange(math.prod(shape))
    return IndexSets([every[every // 2**bit % 2 == side] for bit in range(8) for side in (0, 1)], shape)


@pytest.mark.parametrize("options", [{}, {"variant": "I"}, {"momentum": 0.9}], ids=str)
def test_so_do_those_of_index_sets(options) -> None:
    assert second_step_peak((600, 1000), cover=overlapping_sets((600, 1000)), **options) < 4 * MIB


@pytest.mark.parametrize(
    "cover", [Slices(), Union((Slices(), Blocks((64, 64)))), Blocks((3, 5)), Blocks((-1, 7))], ids=str
)
@pytest.mark.parametrize("shape", [(2, 2_000_000), (600, 6000), (20_000, 3, 60)], ids=str)
def test_so_do_those_of_blocks(shape, cover) -> None:
    assert second_step_peak(shape, cover=cover) < 4 * MIB


SPARSE = [((600_000, 16), 1, 100_000), ((40, 100_000), 1, 50), ((500, 2000), 2, 100_000), ((4, 2_000_000), 1, 3)]


def sparse_step_peak(shape, sparse_dim, count, spread=1.0, **options) -> int:
    param = nn.Parameter(torch.zeros(shape))
    places = [torch.randint(max(1, int(size * spread)), (count,)) for size in shape[:sparse_dim]]
    values = torch.ones(count, *shape[sparse_dim:])
    param.grad = torch.sparse_coo_tensor(torch.stack(places), values, shape, check_invariants=True)
    optimizer = SM3([param], **options)
    optimizer.step()
    return peak_bytes(optimizer.step)


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("spread", [1.0, 1e-4], ids=["few duplicates", "many duplicates"])
@pytest.mark.parametrize(("shape", "sparse_dim", "count"), SPARSE, ids=str)
def test_so_do_those_of_sparse_gradients(shape, sparse_dim, count, spread, variant) -> None:
    assert sparse_step_peak(shape, sparse_dim, count, spread, variant=variant) < 4 * MIB


SCATTERED = [
    ((2, 3_000_000), Slices()),
    ((1500, 4000), Blocks((2, 2))),
    ((40, 50, 2000), Union((Slices(), Blocks((3, 7, 2))))),
    ((20, 20, 20, 20, 20), Slices()),
]


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("count", [1000, 100_000])
@pytest.mark.parametrize(("shape", "cover"), SCATTERED, ids=str)
def test_many_sets_along_several_sparse_dimensions_cost_32_bytes_for_each_entry(shape, cover, count, variant) -> None:
    grids = len(cover.grids(shape))
    assert sparse_step_peak(shape, len(shape), count, cover=cover, variant=variant) < 4 * MIB + 32 * count * grids


def test_the_cut_changes_no_bit(monkeypatch) -> None:
    results = []
    for tile in (1 << 30, 1 << 17, 1000, 7):
        monkeypatch.setattr(tiles, "TILE", tile)
        for shape in [(37, 41), (5, 7, 11), (1000,)]:
            torch.manual_seed(1)
            param = nn.Parameter(torch.randn(shape))
            optimizer = SM3([param], momentum=0.9, kernel="chunked")
            for _ in range(3):
                param.grad = torch.randn(shape)
                optimizer.step()
            results.append((shape, param.detach(), list(optimizer.state[param].values())))
    for shape, param, state in results:
        whole = next(result for result in results if result[0] == shape)
        assert torch.equal(param, whole[1])
        assert all(torch.equal(*pair) for pair in zip(state, whole[2], strict=True))
