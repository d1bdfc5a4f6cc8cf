"""Random nests of views against a count by hand: the sum of the distinct buffers that the nest mentions."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from memprof.optimizers.state_bytes import iter_state_storages, measure_state

# Buffers 0 and 1 belong to the model (a parameter and its gradient), the others to the optimizer.
SIZES = (32, 32, 8, 40, 64, 128, 4096)
DTYPES = (torch.float32, torch.uint8, torch.int32)


@st.composite
def leaves(draw: st.DrawFn) -> tuple[int, int, int, torch.dtype]:
    """Return a buffer's index, and a view into it in 4-byte words: its start, its length and its dtype."""
    index = draw(st.integers(0, len(SIZES) - 1))
    start = draw(st.integers(0, SIZES[index] // 4 - 1))
    return index, start, draw(st.integers(0, SIZES[index] // 4 - start)), draw(st.sampled_from(DTYPES))


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    kinds = st.sampled_from(["list", "tuple", "deque", "dict", "object"])
    return st.tuples(kinds, st.lists(children, max_size=4))


PLANS = st.recursive(leaves(), containers, max_leaves=12)


def realise(plan: Any, buffers: list[Tensor]) -> Any:
    if isinstance(plan[0], int):
        index, start, length, dtype = plan
        return buffers[index][start : start + length].view(dtype)
    kind, children = plan
    items = [realise(child, buffers) for child in children]
    by_name = {f"item{number}": item for number, item in enumerate(items)}
    made = {"list": items, "tuple": tuple(items), "deque": deque(items), "dict": by_name}
    return SimpleNamespace(**by_name) if kind == "object" else made[kind]


def mentioned(plan: Any) -> set[int]:
    if isinstance(plan[0], int):
        return {plan[0]}
    return set().union(*(mentioned(child) for child in plan[1]))


@given(PLANS)
def test_any_nest_counts_each_buffer_once(plan: Any) -> None:
    buffers = [torch.zeros(size // 4) for size in SIZES]
    weight = nn.Parameter(buffers[0])
    weight.grad = buffers[1]
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight]["nest"] = realise(plan, buffers)
    own = mentioned(plan) - {0, 1}
    report = measure_state(optimizer, [weight])
    assert (report.bytes, report.tensors) == (sum(SIZES[index] for index in own), len(own))
    addresses = {storage.data_ptr() for storage, _ in iter_state_storages(optimizer, [weight])}
    assert addresses == {buffers[index].data_ptr() for index in own}
