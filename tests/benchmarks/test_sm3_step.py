"""Step time of SM3 and its peers: `pytest tests/benchmarks/test_sm3_step.py --benchmark-only`.

pytest-benchmark prints each time's ratio to the fastest. The table with memory is `sm3_table.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sm3_peers import gpt2, matrix, optimizers, parameters

CASES = {"matrix": matrix, "gpt2": gpt2}


@pytest.mark.parametrize("shapes", CASES)
@pytest.mark.parametrize("name", optimizers())
def test_step(benchmark, name, shapes) -> None:
    benchmark.group = shapes
    optimizer = optimizers()[name](parameters(CASES[shapes]()))
    optimizer.step()
    optimizer.step()
    benchmark.pedantic(optimizer.step, rounds=5)
    assert len(optimizer.state) == len(CASES[shapes]())
