"""State of other libraries' optimizers, where they are installed, against the committed table of figures.

Remake the table, with all libraries installed: `python -m tests.unit.optimizers.test_state_accounting_third_party`.
SOAP takes eigenvectors: its larger matrix is measured with `MEMPROF_EVERYTHING=1`, its smaller one always.
"""

from __future__ import annotations

import json
import math
import os
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memprof.documents.optimizer_spec import parse_optimizer
from memprof.optimizers.registry import build_optimizer
from memprof.optimizers.state_bytes import measure_state
from tests.unit.optimizers.test_state_accounting_contract import kept_by_allocator

pytestmark = pytest.mark.usefixtures("imports_left_out_of_collections")
DATA = Path(__file__).parents[2] / "data" / "optimizers"
TABLE = DATA / "third_party_state.json"
FIGURES: list[dict[str, Any]] = json.loads(TABLE.read_text())["figures"]
QUICK = [row for row in FIGURES if "SOAP" not in row["spec"] or max(row["shape"]) <= 1024]


def two_steps(spec: str, name: str, shape: list[int]) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape) * 0.02)
    optimizer = build_optimizer(
        parse_optimizer(spec.replace("factories.py", str(DATA / "factories.py"))), [(name, weight)]
    )
    for _ in range(2):
        weight.grad = torch.randn(shape)
        optimizer.step()
    weight.grad = None
    return optimizer, [weight]


def naive_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return what a look at the tensor values of `optimizer.state` makes of it."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def figures(row: dict[str, Any]) -> dict[str, Any]:
    optimizer, parameters = two_steps(row["spec"], row["parameter"], row["shape"])
    report = measure_state(optimizer, parameters)
    return {
        "bytes": report.bytes,
        "bytes_per_parameter": round(report.bytes / math.prod(row["shape"]), 4),
        "by_dtype": dict(sorted(report.by_dtype.items())),
        "naive_bytes": naive_bytes(optimizer),
    }


def identity(row: dict[str, Any]) -> str:
    return f"{row['spec'].partition(':')[2]} {'x'.join(map(str, row['shape']))} {row['parameter']}"


def require(row: dict[str, Any]) -> None:
    pytest.importorskip(row["module"], exc_type=ImportError)
    installed = version(row["distribution"])
    if installed != row["version"]:
        pytest.skip(f"the table is for {row['distribution']} {row['version']}, here is {installed}")


@pytest.mark.slow
@pytest.mark.parametrize("row", FIGURES if "MEMPROF_EVERYTHING" in os.environ else QUICK, ids=identity)
def test_table_holds(row: dict[str, Any]) -> None:
    require(row)
    measured = figures(row)
    assert {key: row[key] for key in measured} == measured


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in FIGURES if row["shape"][-1] <= 1024], ids=identity)
def test_allocator_kept_as_much(row: dict[str, Any]) -> None:
    require(row)
    arguments = row["spec"], row["parameter"], row["shape"]
    two_steps(*arguments)  # compiles and fills caches, which are no state
    assert kept_by_allocator(lambda: two_steps(*arguments)) == row["bytes"]


@pytest.mark.parametrize("row", FIGURES, ids=identity)
def test_figures_of_a_row_agree(row: dict[str, Any]) -> None:
    assert sum(row["by_dtype"].values()) == row["bytes"]
    assert row["bytes_per_parameter"] == round(row["bytes"] / math.prod(row["shape"]), 4)


def remake() -> None:
    """Measure every row again and rewrite the table."""
    rows = []
    for row in FIGURES:
        import_module(row["module"])
        fixed = {key: row[key] for key in ("distribution", "module", "spec", "parameter", "shape")}
        rows.append({**fixed, "version": version(row["distribution"]), **figures(row)})
        print(identity(row), rows[-1]["bytes_per_parameter"], flush=True)
    head = {
        "about": "float32, two steps, CPU; naive_bytes looks at the tensor values of optimizer.state only",
        "command": "python -m tests.unit.optimizers.test_state_accounting_third_party",
        "torch": torch.__version__,
    }
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    TABLE.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "figures": [\n  {lines}\n ]\n}}\n')


if __name__ == "__main__":
    remake()
