"""SM3 on every kind of gradient: layouts, ranks, empty, sparse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sm3 import SM3, IndexSets
from sm3.covers import NAMED, Blocks, Slices, Union
from sm3.kernels import entries, sparse_sets
from sm3.kernels import sparse as sparse_kernel


def steps(param: nn.Parameter, grads, **options) -> SM3:
    optimizer = SM3([param], lr=0.3, **{"kernel": "chunked", **options})
    for grad in grads:
        param.grad = grad
        optimizer.step()
    return optimizer


def state_of(optimizer: SM3, param: nn.Parameter) -> list[torch.Tensor]:
    return list(optimizer.state[param].values())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("variant", ["I", "II"])
def test_channels_last_equals_contiguous(variant, momentum) -> None:
    start, grads = torch.randn(4, 6, 3, 3), [torch.randn(4, 6, 3, 3) for _ in range(3)]
    plain = nn.Parameter(start.clone())
    last = nn.Parameter(start.clone(memory_format=torch.channels_last))
    expected = steps(plain, [g.clone() for g in grads], variant=variant, momentum=momentum)
    found = steps(last, [g.clone(memory_format=torch.channels_last) for g in grads], variant=variant, momentum=momentum)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)
    assert all(map(torch.equal, state_of(expected, plain), state_of(found, last)))


def test_transposed_parameter_and_strided_gradient() -> None:
    start, grads = torch.randn(5, 7), [torch.randn(5, 14) for _ in range(3)]
    plain, transposed = nn.Parameter(start.clone()), nn.Parameter(start.t().contiguous().t())
    steps(plain, [g[:, ::2].clone() for g in grads])
    steps(transposed, [g[:, ::2] for g in grads])
    assert not transposed.is_contiguous()
    assert torch.equal(plain, transposed)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
@pytest.mark.parametrize("variant", ["I", "II"])
def test_an_empty_parameter_is_no_error(shape, variant) -> None:
    param = nn.Parameter(torch.zeros(shape))
    optimizer = steps(param, [torch.zeros(shape)] * 2, variant=variant, momentum=0.9, momentum_dtype="int8")
    assert sum(value.numel() for key, value in optimizer.state[param].items() if "acc" in key) == sum(shape)


def test_expanded_gradient() -> None:
    param = nn.Parameter(torch.zeros(3, 4))
    steps(param, [torch.ones(1).expand(3, 4)])
    assert torch.equal(param.detach(), torch.full((3, 4), -0.3))


SPARSE_COVERS = {**NAMED, "blocks": Blocks((2, 2)), "union": Union((Slices(), Blocks((3, -1))))}


def sparse_gradient(shape: tuple[int, ...], sparse_dim: int, count: int, seed: int) -> torch.Tensor:
    """Uncoalesced, with duplicate indices, other rows at each step."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(size, (count,), generator=generator) for size in shape[:sparse_dim]]
    values = torch.randn(count, *shape[sparse_dim:], generator=generator)
    return torch.sparse_coo_tensor(torch.stack(columns), values, shape, check_invariants=True)


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("cover", SPARSE_COVERS.values(), ids=SPARSE_COVERS.keys())
@pytest.mark.parametrize(
    ("shape", "sparse_dim"), [((9, 5), 1), ((9, 5), 2), ((12,), 1), ((6, 4, 3), 1), ((6, 4, 3), 2)], ids=str
)
def test_sparse_equals_dense_bit_for_bit(shape, sparse_dim, cover, variant) -> None:
    grads = [sparse_gradient(shape, sparse_dim, 4, seed) for seed in range(6)]
    start = torch.randn(shape)
    dense, sparse = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    expected = steps(dense, [g.coalesce().to_dense() for g in grads], variant=variant, cover=cover)
    found = steps(sparse, grads, variant=variant, cover=cover)
    assert found.kernel == "sparse"
    assert torch.equal(dense, sparse)
    assert all(map(torch.equal, state_of(expected, dense), state_of(found, sparse)))


def exact(gradient: torch.Tensor) -> torch.Tensor:
    """Round its values so that sums of duplicates are exact, in whatever order `coalesce` adds them."""
    values = (gradient._values() * 16).round() / 16
    return torch.sparse_coo_tensor(gradient._indices(), values, gradient.shape, check_invariants=True)


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("cover", SPARSE_COVERS.values(), ids=SPARSE_COVERS.keys())
@pytest.mark.parametrize(("group", "chunk"), [(2, 3), (5, 16), (100, 2)])
def test_how_sparse_entries_are_grouped_changes_no_bit(group, chunk, cover, variant, monkeypatch) -> None:
    """Many duplicates of a row, rows longer than a chunk, groups that bisection finds."""
    monkeypatch.setattr(entries, "GROUP", group)
    monkeypatch.setattr(sparse_kernel, "CHUNK", chunk)
    for shape, sparse_dim, count in [((9, 5), 1, 16), ((5, 4), 2, 16), ((6, 3, 2), 2, 12)]:
        grads = [exact(sparse_gradient(shape, sparse_dim, count, seed)) for seed in range(2)]
        start = torch.randn(shape)
        dense, sparse = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        expected = steps(dense, [g.coalesce().to_dense() for g in grads], variant=variant, cover=cover)
        found = steps(sparse, grads, variant=variant, cover=cover)
        assert torch.equal(dense, sparse)
        assert all(map(torch.equal, state_of(expected, dense), state_of(found, sparse)))


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("cover", SPARSE_COVERS.values(), ids=SPARSE_COVERS.keys())
def test_maxima_of_the_sets_that_are_present_suffice(cover, variant, monkeypatch) -> None:
    """Sets cross parts of the work, and most of them have no entry: a table of every set would be larger."""
    monkeypatch.setattr(sparse_sets, "SMALL", 0)
    monkeypatch.setattr(sparse_kernel, "CHUNK", 8)
    for shape, sparse_dim, count in [((30, 40), 2, 5), ((3, 90), 2, 4), ((40, 30), 1, 3), ((9, 10, 11), 3, 6)]:
        grads = [exact(sparse_gradient(shape, sparse_dim, count, seed)) for seed in range(3)]
        start = torch.randn(shape)
        dense, sparse = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        expected = steps(dense, [g.coalesce().to_dense() for g in grads], variant=variant, cover=cover)
        found = steps(sparse, grads, variant=variant, cover=cover)
        assert torch.equal(dense, sparse)
        assert all(map(torch.equal, state_of(expected, dense), state_of(found, sparse)))


def test_sparse_keeps_rows_that_are_absent() -> None:
    """Known defect of other implementations: a step on row 2 reset row 1."""
    param = nn.Parameter(torch.zeros(4, 2))
    one = torch.sparse_coo_tensor([[1]], [[3.0, 3.0]], (4, 2), check_invariants=True)
    two = torch.sparse_coo_tensor([[2]], [[1.0, 1.0]], (4, 2), check_invariants=True)
    optimizer = steps(param, [one, two])
    assert optimizer.state[param]["accumulator_0"].tolist() == [0.0, 9.0, 1.0, 0.0]


def test_sparse_embedding_trains_without_a_dense_gradient() -> None:
    layer = nn.Embedding(50, 4, sparse=True)
    before = layer.weight.detach().clone()
    optimizer = SM3(layer.parameters(), lr=0.5)
    layer(torch.tensor([3, 3, 7])).sum().backward()
    optimizer.step()
    changed = (layer.weight.detach() != before).any(1).nonzero().flatten().tolist()
    assert changed == [3, 7]
    assert torch.allclose(layer.weight.detach()[3], before[3] - 0.5)


def test_sparse_without_entries_changes_nothing() -> None:
    param = nn.Parameter(torch.ones(4, 2))
    empty = torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 2), (4, 2), check_invariants=True
    )
    steps(param, [empty])
    assert torch.equal(param.detach(), torch.ones(4, 2))


def test_sparse_bfloat16() -> None:
    grads = [sparse_gradient((9, 5), 1, 4, seed).to(torch.bfloat16) for seed in range(4)]
    dense, sparse = (nn.Parameter(torch.ones(9, 5, dtype=torch.bfloat16)) for _ in range(2))
    steps(dense, [g.coalesce().to_dense() for g in grads])
    steps(sparse, grads)
    assert torch.equal(dense, sparse)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beta": 0.9}, "beta needs dense"),
        ({"weight_decay": 0.1}, "weight_decay needs dense"),
        ({"cover": IndexSets([range(8)], (4, 2))}, "index sets needs dense"),
    ],
)
def test_what_sparse_gradients_do_not_allow_is_a_sentence(options, sentence) -> None:
    param = nn.Parameter(torch.ones(4, 2))
    with pytest.raises(ValueError, match=sentence):
        steps(param, [torch.sparse_coo_tensor([[1]], [[1.0, 1.0]], (4, 2), check_invariants=True)], **options)
