"""The recorder on real tensors: exact sizes, operators at the dispatcher's level, modules in both passes."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from memprof.measurement.record.event_tree import is_composition, name_modules
from memprof.measurement.record.profiler import ProfilerRecorder
from memprof.trace.attribution import build_trace
from memprof.trace.events import (
    Allocation,
    Free,
    ModuleMark,
    OperatorBegin,
    OperatorEnd,
    PhaseMark,
    ProfiledOperator,
    Trace,
)
from memprof.trace.modules import followed_modules
from memprof.training.checkpointing import checkpoint_blocks
from tests import children


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(64, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def traced_step(model: nn.Module) -> Trace:
    """Record a forward and backward pass from the input on."""
    recorder = ProfilerRecorder("cpu")
    recorder.start()
    x = torch.randn(32, 64)
    recorder.follow_operators()
    with followed_modules(model, recorder.mark):
        recorder.mark(PhaseMark(1, "forward"))
        loss = model(x).square().mean()
        recorder.mark(PhaseMark(1, "backward"))
        loss.backward()
    return build_trace(recorder.stop())


def test_sizes_are_exact_and_frees_of_the_first_session_are_seen_in_the_second():
    recorder = ProfilerRecorder("cpu")
    recorder.start()
    tensor = torch.empty(1000, dtype=torch.uint8)
    recorder.follow_operators()
    del tensor
    entries = recorder.stop()
    (allocation,) = [entry for entry in entries if isinstance(entry, Allocation) and entry.size == 1000]
    assert Free(allocation.address) in entries


@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_block_of_both_passes_is_named_after_its_module(checkpointed: bool):
    model = Net()
    if checkpointed:
        checkpoint_blocks(model)
    trace = traced_step(model)
    makers = {(block.phase, block.operator, block.module) for block in trace.blocks}
    assert ("forward", "aten::addmm", "layers.1.0") in makers
    assert ("forward", "aten::tanh", "layers.1.1") in makers
    assert ("backward", "aten::mm", "head") in makers
    weight_gradients = [b for b in trace.blocks if b.size == 64 * 64 * 4 and b.operator == "aten::mm"]
    assert [block.module for block in weight_gradients] == ["layers.2.0", "layers.1.0", "layers.0.0"]
    recomputed = [b for b in trace.blocks if b.phase == "backward" and b.category == "activations"]
    assert {block.module for block in recomputed} == (
        {f"layers.{number}.{part}" for number in range(3) for part in (0, 1)} if checkpointed else set()
    )


def test_composite_operators_are_looked_into():
    compositions = ["linear", "matmul", "conv2d", "layer_norm", "scaled_dot_product_attention", "to", "einsum"]
    operators = ["addmm", "convolution", "native_layer_norm", "empty", "_foreach_add_", "_fused_adam_", "slice"]
    assert all(is_composition(f"aten::{name}") for name in compositions)
    assert not any(is_composition(f"aten::{name}") for name in operators)
    assert is_composition("my own range")


def test_module_of_a_backward_operator_is_its_nodes():
    entries = [
        ModuleMark("a", enters=True),
        ProfiledOperator("aten::mm", 4, None),
        OperatorEnd([]),
        ModuleMark("a", enters=False),
        ProfiledOperator("aten::mm", -1, 4),
        OperatorEnd([]),
        ProfiledOperator("aten::add", -1, None),
        OperatorEnd([]),
    ]
    begins = [entry for entry in name_modules(entries) if isinstance(entry, OperatorBegin)]
    assert begins == [OperatorBegin("aten::mm", "a"), OperatorBegin("aten::mm", "a"), OperatorBegin("aten::add", "")]


COMPILED = """
import torch
from torch import nn
from memprof import Workload

def build() -> Workload:
    def model() -> nn.Module:
        return torch.compile(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)), backend="aot_eager")

    return Workload(model=model, batch=lambda n: torch.randn(n, 64), loss=lambda m, b: m(b).square().mean())

class CompiledSGD(torch.optim.SGD):
    def __init__(self, params, lr=0.01):
        super().__init__(params, lr)
        self.update = torch.compile(lambda p, g: p.sub_(g * 0.01), backend="aot_eager", fullgraph=True)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.update(parameter, parameter.grad)
"""


def test_compiled_models_and_optimizers_are_measured(tmp_path):
    file = tmp_path / "compiled.py"
    file.write_text(COMPILED)
    script = f"""
import memprof
result = memprof.compare("{file}:build", batch_size=64, optimizers=["adam", "{file}:CompiledSGD"], fit=False)
for run in result.runs:
    print(run.status, sum(run.breakdown.by_category.values()) == run.breakdown.total_bytes, *run.notes)
"""
    output = children.run([sys.executable, "-c", script]).stdout
    lines = output.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("ok True")
        assert "compiled by torch.compile" in line
