"""A refusal that a script's own handlers catch: the run ends with it all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

import memprof
from memprof.workers.launcher import Launcher

CAUGHT = """
import torch
from torch import nn

@torch.library.custom_op("memprof_script::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2

device = "cuda" if torch.cuda.is_available() else "cpu"
model = nn.Linear(64, 64).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(9):
    output = model(torch.randn(8, 64, device=device))
    try:
        output = output + {operator}
    except {caught}:
        print("went on")
    output.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
OPERATORS = {
    "twice(output.detach())": "runs memprof_script::twice, which has no fake kernel",
    "(torch.cuda.CUDAGraph() and output)": "torch.cuda.CUDAGraph cannot be predicted (",
    "torch.sparse.mm(torch.eye(8, device=device).to_sparse(), output)": "runs aten::_to_sparse, which has no fake",
}


@pytest.mark.parametrize("caught", ["Exception", "BaseException"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_refusal_that_is_caught_ends_the_run(launcher: Launcher, tmp_path: Path, operator: str, caught: str) -> None:
    script, said = tmp_path / "script.py", tmp_path / "said.txt"
    script.write_text(CAUGHT.format(operator=operator, caught=caught))
    options = {"device": "rtx-4090", "launcher": launcher, "script_output": said}
    own, sm3 = memprof.run(script, optimizers=["as-is", "sm3"], **options).runs
    for found in (own, sm3):
        assert (found.status, found.peak) == ("failed", None)
        assert OPERATORS[operator] in found.reason
    assert said.read_text() == 2 * "went on\n"  # and was stopped in the next phase
    (measured,) = memprof.run(script, device="cpu", launcher=launcher).runs
    assert measured.status == "ok"


def test_a_reading_that_has_no_answer_may_be_caught(launcher: Launcher, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(CAUGHT.format(operator="torch.cuda.temperature()", caught="Exception"))
    (found,) = memprof.run(script, device="rtx-4090", launcher=launcher).runs
    assert found.status == "ok"


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_refusal_that_nobody_catches_is_the_same_row(launcher: Launcher, tmp_path: Path, operator: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(CAUGHT.format(operator=operator, caught="KeyError"))
    (found,) = memprof.run(script, device="rtx-4090", launcher=launcher).runs
    assert found.status == "failed"
    assert OPERATORS[operator] in found.reason
