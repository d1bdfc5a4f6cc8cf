"""Covers: what they cover, what they cost, how they are chosen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sm3 import SM3, Blocks, IndexSets, Singleton, Slices, Union, Whole, reference
from sm3.kernels import tiles


@pytest.mark.parametrize(
    ("cover", "shape", "numel"),
    [
        (Slices(), (5, 4), 9),
        (Slices(), (2, 3, 4), 9),
        (Slices(), (7,), 7),
        (Slices(), (), 1),
        (Slices((0,)), (5, 4), 5),
        (Slices((0, 2)), (2, 3, 4), 6),
        (Singleton(), (2, 3, 4), 24),
        (Whole(), (2, 3, 4), 1),
        (Blocks((2, 3)), (5, 4), 6),
        (Blocks((-1, 1)), (5, 4), 4),
        (Blocks((2,)), (5, 4), 3),
        (Union((Slices(), Blocks((2, 3)))), (5, 4), 15),
        (IndexSets([[0, 1], [1, 2, 3]], (2, 2)), (2, 2), 2),
    ],
    ids=repr,
)
def test_a_cover_says_its_own_size_and_covers_every_index(cover, shape, numel) -> None:
    sets = cover.index_sets(shape)
    assert cover.state_numel(shape) == len(sets) == numel
    assert cover.state_bytes(shape) == 4 * numel
    assert torch.cat(sets).unique().tolist() == list(range(torch.Size(shape).numel()))
    param = nn.Parameter(torch.zeros(shape))
    param.grad = torch.ones(shape)
    optimizer = SM3([param], cover=cover)
    optimizer.step()
    assert sum(value.nbytes for value in optimizer.state[param].values()) == 4 * numel


def test_sets_of_the_slices_of_a_matrix_are_its_rows_and_columns() -> None:
    sets = [members.tolist() for members in Slices().index_sets((2, 3))]
    assert sets == [[0, 1, 2], [3, 4, 5], [0, 3], [1, 4], [2, 5]]


def test_rank_one_has_the_singletons() -> None:
    assert [members.tolist() for members in Slices().index_sets((3,))] == [[0], [1], [2]]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5}, {"beta": 0.5, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("variant", ["I", "II"])
def test_overlapping_index_sets_equal_the_pseudocode(variant, options) -> None:
    sets = [[0, 3, 5], [1, 2, 3, 4], [5, 0, 1], [2], [4, 5]]
    param = nn.Parameter(torch.randn(2, 3))
    start, grads = param.detach().clone(), [torch.randn(2, 3) for _ in range(5)]
    optimizer = SM3([param], lr=0.2, variant=variant, cover=IndexSets(sets, (2, 3)), **options)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    expected = reference.run(variant, start, grads, sets, 0.2, **options).weights
    torch.testing.assert_close(param.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_index_sets_that_are_the_slices_equal_the_slices_across_tiles(monkeypatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 100)
    shape = (30, 50)
    torch.manual_seed(0)
    grads = [torch.randn(shape) for _ in range(3)]
    results = []
    for cover in (Slices(), IndexSets(Slices().index_sets(shape), shape)):
        param = nn.Parameter(torch.zeros(shape))
        optimizer = SM3([param], cover=cover, kernel="chunked")
        for grad in grads:
            param.grad = grad.clone()
            optimizer.step()
        results.append(param.detach())
    assert torch.equal(*results)


def test_masks_are_sets_too() -> None:
    mask = torch.tensor([[True, False], [False, True]])
    cover = IndexSets([mask, ~mask], (2, 2))
    assert [members.tolist() for members in cover.index_sets((2, 2))] == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ([[0, 1], [3]], "index 2 is in no set"),
        ([[0, 1, 2, 3], []], "each set"),
        ([[0, 1, 2, 4]], "from 0 to 3"),
        ([[-1, 0, 1, 2, 3]], "from 0 to 3"),
        ([torch.ones(3, dtype=torch.bool)], "mask of shape"),
    ],
)
def test_sets_that_are_no_cover_are_refused(sets, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        IndexSets(sets, (2, 2))


@pytest.mark.parametrize("lengths", [(), (0,), (-2, 1)])
def test_blocks_of_no_length_are_refused(lengths) -> None:
    with pytest.raises(ValueError, match="block lengths"):
        Blocks(lengths)


def test_a_cover_of_another_shape_or_rank_is_refused() -> None:
    param = nn.Parameter(torch.zeros(3, 2))
    param.grad = torch.ones(3, 2)
    with pytest.raises(ValueError, match="the parameter has"):
        SM3([param], cover=IndexSets([range(4)], (2, 2))).step()
    with pytest.raises(ValueError, match=r"slices\(2\)"):
        SM3([param], cover=Slices((2,))).step()
    with pytest.raises(ValueError, match="union takes"):
        Union(())


def state_sizes(net: nn.Module, params, cover) -> list[int]:
    optimizer = SM3(params, cover=cover)
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    return [sum(v.numel() for v in optimizer.state[param].values()) for param in net.parameters()]


def test_by_name_pattern_the_first_match_counts() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    chosen = {"0.*": "whole", "*.weight": Slices((0,)), "0.weight": "singleton"}
    assert state_sizes(net, net.named_parameters(), chosen) == [1, 1, 5, 5]


def test_by_parameter_and_by_group() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    assert state_sizes(net, net.parameters(), {net[1].weight: "whole"}) == [7, 4, 1, 5]
    groups = [{"params": net[0].parameters(), "cover": "whole"}, {"params": net[1].parameters()}]
    assert state_sizes(net, groups, "slices") == [1, 1, 9, 5]


def test_patterns_without_names_are_a_sentence() -> None:
    net = nn.Linear(3, 4)
    with pytest.raises(ValueError, match="named_parameters"):
        SM3(net.parameters(), cover={"weight": "rows"})


@pytest.mark.parametrize("cover", [3, {"weight": 3}, {4: "rows"}, {"weight": {"a": "rows"}}], ids=str)
def test_what_is_no_cover_is_refused(cover) -> None:
    with pytest.raises(TypeError, match="cover"):
        SM3(nn.Linear(3, 4).named_parameters(), cover=cover)
