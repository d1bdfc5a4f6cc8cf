"""Models that a prediction cannot follow: one sentence with the operator, the module and what to do, or a note."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memprof.devices.target import Target
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.prediction.cpu.semantics import CpuSemantics
from memprof.prediction.cuda.semantics import CudaSemantics
from memprof.prediction.fake.training import FakeRun, fake_runs
from memprof.trace.events import Allocation

A100 = Target(name="a100", kind="cuda", capability=(8, 0), torch_version=(2, 13))
DEVICES = {"cpu": CpuSemantics(), "cuda": CudaSemantics(A100)}
MODEL = """
import torch
from torch import nn
from memprof import Workload
class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = {layer}
    def forward(self, x):
        y = self.layer(x)
        {line}
        return y
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
    def forward(self, x):
        return self.inner(x)
def net():
    model = {model}
    return Workload(model=model, batch=lambda n: torch.randn(n, 4, 4), loss=lambda m, b: m(b).sum())
"""


def train(folder: Path, device: str, line: str = "pass", layer: str = "nn.Linear(4, 4)", model: str = "Net") -> FakeRun:
    path = folder / "model.py"
    path.write_text(MODEL.format(line=line, layer=layer, model=model), encoding="utf-8")
    spec = WorkloadSpec(model=f"{path}:net")
    return fake_runs(spec, [parse_optimizer("sgd")], Recipe(), 2, DEVICES[device])[0]


def sizes(run: FakeRun) -> list[int]:
    return [entry.size for entry in run.entries if isinstance(entry, Allocation)]


READS = {
    "y = y * y.sum().item()": "reads a value",
    "y = y if y.sum() > 0 else -y": "branches on a value",
    "y = y * float(y.max())": "reads a value",
    "y = y[y > 0]": "aten::nonzero",
    "y = y.flatten()[y.flatten().nonzero().squeeze(1)]": "aten::nonzero",
    "y = y.masked_select(y > 0)": "aten::masked_select",
    "y = y * len(y.unique())": "aten::_unique2",
    "y = y * y.detach().numpy().mean()": "(numpy)",
    "y = y * sum(y.detach().flatten().tolist())": "(tolist)",
    "y = y if torch.equal(y, x) else -y": "branches on a value",
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("line", READS)
def test_a_model_that_reads_what_it_computes(tmp_path: Path, line: str, device: str) -> None:
    run = train(tmp_path, device, line)
    assert run.entries
    (note,) = run.guesses
    place = MODEL[: MODEL.index("{line}")].count("\n") + 1
    assert note.startswith(f"{tmp_path / 'model.py'}:{place} ")
    assert READS[line] in note


KNOWN = {
    "mask": "y = y[:, : int(torch.ones(4).sum())]",
    "positions": "y = y[:, torch.arange(4)[torch.arange(4) % 2 == 0]]",
    "shape": "y = y.view(int(torch.tensor(y.shape).prod()))",
    "printed": "print(y, f'{y}')",
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", KNOWN)
def test_a_model_that_reads_what_is_known(tmp_path: Path, name: str, device: str) -> None:
    run = train(tmp_path, device, KNOWN[name])
    assert run.failure is None
    assert run.entries
    assert run.guesses == frozenset()


@pytest.mark.parametrize("device", DEVICES)
def test_an_operator_without_a_fake_kernel(tmp_path: Path, device: str) -> None:
    library = torch.library.Library("memprof_test", "DEF")
    library.define("mystery(Tensor x) -> Tensor")
    library.impl("mystery", lambda x: x.clone(), "CUDA")
    try:
        with pytest.raises(UsageError) as caught:
            train(tmp_path, device, "y = torch.ops.memprof_test.mystery(y)")
    finally:
        library._destroy()
    assert str(caught.value) == (
        "module 'inner' runs memprof_test::mystery, which has no fake kernel (torch.library.register_fake gives it "
        "one), so its memory cannot be predicted: measure it with --device cpu or cuda"
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", ["lambda: torch.compile(Net())", "torch.compile(mode='max-autotune')(Net)"])
def test_a_compiled_model_is_predicted_as_it_is(tmp_path: Path, device: str, model: str) -> None:
    run = train(tmp_path, device, model=model)
    assert sizes(run) == sizes(train(tmp_path, device))
    assert run.guesses == {
        "The training step uses torch.compile: it is predicted as if it were not compiled.",
    }


def test_a_layer_that_compiles_itself_is_named(tmp_path: Path) -> None:
    run = train(tmp_path, "cuda", "y = torch.compile(torch.sin)(y); self.compile()")
    assert run.guesses == {"Module 'inner' uses torch.compile: it is predicted as if it were not compiled."}


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_on_a_gpu_are_a_guess(tmp_path: Path, layer: str) -> None:
    make = f"nn.{layer}(4, 4)"
    run = train(tmp_path, "cuda", "y = y[0]", make)
    assert len(run.guesses) == 1
    assert next(iter(run.guesses)).startswith(
        f"Module 'inner.layer' runs {'rnn_tanh' if layer == 'RNN' else layer.lower()}"
    )
    on_cpu = train(tmp_path, "cpu", "y = y[0]", make).guesses
    assert len(on_cpu) == (layer == "LSTM")  # whose kernel is oneDNN's
    assert all("aten::mkldnn_rnn_layer_backward" in guess for guess in on_cpu)
