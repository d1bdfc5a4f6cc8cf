"""Speed of `memprof gate`: GPT-2 with four optimizers on a simulated 24 GiB GPU, cold, beside an import of torch alone.

    pytest tests/benchmarks/test_gate_benchmark.py --benchmark-only

The figure in parentheses is the ratio to the import.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import children

CONFIG = """
[budgets.gpt2]
model = "gpt2"
batch_size = 8
optimizers = ["sm3", "adam", "adafactor", "sgd"]
device = "24GiB"
precision = "amp-bf16"
peak_reserved_bytes = "23 GiB"
state_bytes = "1 GiB"
"""
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "memprof gate": [sys.executable, "-m", "memprof", "gate"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_cold_gate(benchmark, tmp_path: Path, name: str) -> None:
    (tmp_path / "memprof.toml").write_text(CONFIG)
    benchmark.group = "gate GPT-2, four optimizers, 24 GiB"

    def run() -> None:
        children.run(COMMANDS[name], cwd=tmp_path)

    benchmark.pedantic(run, rounds=3)
