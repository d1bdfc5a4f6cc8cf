"""Every optimizer that the registry knows: its state is what the CPU allocator says that it kept."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.optimizers.registry import KNOWN_OPTIMIZERS, build_optimizer
from memprof.optimizers.state_bytes import iter_state_storages, measure_state

pytestmark = pytest.mark.usefixtures("imports_left_out_of_collections")
TRAINABLE = [name for name, known in KNOWN_OPTIMIZERS.items() if known.refusal is None]
VARIANTS = [
    *("sgd,momentum=0.9", "adam,amsgrad=true", "rmsprop,momentum=0.9,centered=true", "sgd,foreach=true"),
    *(
        "adam,foreach=true",
        "adam,fused=true",
        "adagrad,fused=true",
        "adafactor,foreach=true",
        "adamw,foreach=true",
    ),
]
SPECS = sorted({*TRAINABLE, *DEFAULT_OPTIMIZERS, *VARIANTS})


class EveryRank(nn.Module):
    """A 0-d, a 1-D, a 2-D and a 4-D parameter; `loss` gives each a gradient."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"scale": (), "bias": (7,), "weight": (8, 5), "kernel": (6, 4, 3, 3)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def loss(self) -> torch.Tensor:
        return sum((p.square().sum() for p in self.parameters()), torch.zeros(()))


class Matrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 5))

    def loss(self) -> torch.Tensor:
        return self.weight.square().sum()


class SparseTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 5, sparse=True)

    def loss(self) -> torch.Tensor:
        return self.table(torch.tensor([1, 3, 3])).square().sum()


MODELS = {"muon": Matrix, "sparseadam": SparseTable}


def train(spec: str) -> tuple[torch.optim.Optimizer, EveryRank | Matrix | SparseTable]:
    parsed = parse_optimizer(spec)
    model = MODELS.get(parsed.name, EveryRank)()
    return build_optimizer(parsed, model.named_parameters()), model


def two_steps(optimizer: torch.optim.Optimizer, model: EveryRank | Matrix | SparseTable) -> None:
    for _ in range(2):
        model.loss().backward()
        optimizer.step()
        optimizer.zero_grad()


def kept_by_allocator(run: Callable[[], tuple[torch.optim.Optimizer, list[nn.Parameter]]]) -> int:
    """Return what the CPU allocator handed out during a run and did not get back, less the parameters.

    The oracle: it knows no Python objects. The run makes its own model, so that all it frees was counted,
    and drops its gradients.
    """
    gc.collect()  # what earlier tests left would be counted as given back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer, parameters = run()
        gc.collect()
    events = profiler.profiler.kineto_results.events()
    kept = sum(event.nbytes() for event in events if event.name() == "[memory]")
    assert optimizer is not None  # alive until here
    return kept - sum(parameter.nbytes for parameter in parameters)


@pytest.mark.parametrize("spec", SPECS)
def test_state_is_what_the_allocator_kept(spec: str) -> None:
    def run() -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
        optimizer, model = train(spec)
        two_steps(optimizer, model)
        return optimizer, list(model.parameters())

    optimizer, parameters = run()  # before the oracle: what a first call allocates for good is no state
    assert measure_state(optimizer, parameters).bytes == kept_by_allocator(run)


@pytest.mark.parametrize("spec", SPECS)
def test_parts_of_the_report_agree(spec: str) -> None:
    optimizer, model = train(spec)
    two_steps(optimizer, model)
    report = measure_state(optimizer, model.parameters())
    storages = list(iter_state_storages(optimizer, model.parameters()))
    assert len({storage.data_ptr() for storage, _ in storages}) == len(storages) == report.tensors
    assert sum(storage.nbytes() for storage, _ in storages) == report.bytes
    assert sum(report.device_bytes.values()) == sum(report.by_dtype.values()) == report.bytes
    for dtype, size in report.by_dtype.items():
        assert size == sum(storage.nbytes() for storage, own in storages if str(own) == f"torch.{dtype}")


@pytest.mark.parametrize("spec", SPECS)
def test_measuring_changes_nothing(spec: str) -> None:
    optimizer, model = train(spec)
    two_steps(optimizer, model)
    model.loss().backward()  # with gradients present
    first = measure_state(optimizer, model.parameters())
    assert measure_state(optimizer, model.parameters()) == first
    model.zero_grad()
    assert measure_state(optimizer, model.parameters()) == first
