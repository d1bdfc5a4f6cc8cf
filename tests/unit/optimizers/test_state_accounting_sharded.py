"""DTensor parameters: a rank counts its own shard of the state, and no bytes of the device mesh."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from memprof.documents.optimizer_spec import parse_optimizer
from memprof.optimizers.registry import build_optimizer
from memprof.optimizers.state_bytes import measure_state

WORLD = 4


@pytest.fixture
def mesh() -> Iterator[object]:
    """A mesh of four ranks in one process, which moves no data (torch's fake process group)."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    try:
        yield dist.init_device_mesh("cpu", (WORLD,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("spec", "copies"), [("adam,foreach=false", 2), ("sgd,momentum=0.9,foreach=false", 1)])
def test_a_rank_counts_its_shard(mesh: object, spec: str, copies: int) -> None:
    from torch.distributed.tensor import DTensor, Shard

    weight = nn.Parameter(DTensor.from_local(torch.randn(16, 8), mesh, [Shard(0)]))
    assert weight.shape == (16 * WORLD, 8)
    optimizer = build_optimizer(parse_optimizer(spec), [("weight", weight)])
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    step = 4 if spec.startswith("adam") else 0
    assert measure_state(optimizer, [weight]).bytes == copies * 16 * 8 * 4 + step
    optimizer.alias = [weight.to_local(), weight.grad]  # type: ignore[attr-defined]
    assert measure_state(optimizer, [weight]).bytes == copies * 16 * 8 * 4 + step
