"""The training step does what an ordinary loop does, in the order that the recipe says."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from memprof.documents.recipe import Recipe
from memprof.errors import UsageError
from memprof.training.checkpointing import checkpoint_blocks
from memprof.training.seeds import seed_batch
from memprof.training.step import PerParameterOptimizers, TrainingStep, move_batch
from memprof.workloads.workload import Workload

CPU = torch.device("cpu")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1))


def make_workload() -> Workload:
    return Workload(
        model=make_model,
        batch=lambda batch_size: {"x": torch.randn(batch_size, 6), "y": [torch.randn(batch_size, 1)]},
        loss=lambda model, batch: (model(batch["x"]) - batch["y"][0]).square().mean(),
    )


def train(recipe: Recipe, steps: int = 3) -> tuple[nn.Module, TrainingStep, list[str]]:
    workload, model, phases = make_workload(), make_model(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step = TrainingStep(workload, model, optimizer, recipe, CPU, 4, phases.append)
    for _ in range(steps):
        step.run()
    return model, step, phases


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("recipe", "phases"),
    [
        (Recipe(), "batch forward backward optimizer zero_grad"),
        (Recipe(zero_grad="start"), "zero_grad batch forward backward optimizer"),
        (Recipe(zero_grad="before-backward"), "batch forward zero_grad backward optimizer"),
        (Recipe(clip_grad=1.0), "batch forward backward clip optimizer zero_grad"),
        (Recipe(accumulate=2), "batch forward backward batch forward backward optimizer zero_grad"),
        (
            Recipe(accumulate=2, zero_grad="before-backward"),
            "batch forward zero_grad backward batch forward backward optimizer",
        ),
    ],
)
def test_phases_come_in_the_order_of_the_recipe(recipe: Recipe, phases: str):
    assert train(recipe, steps=1)[2] == phases.split()


def test_one_step_equals_the_loop_written_out():
    trained, _, _ = train(Recipe(clip_grad=0.1, accumulate=2), steps=2)
    workload, model = make_workload(), make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(2):
        for micro_batch in range(2):
            seed_batch(0, 0, 2 * step + micro_batch + 1)
            (workload.loss(model, workload.batch(4)) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    assert same_weights(trained, model)


def test_where_gradients_are_zeroed_does_not_change_the_result():
    baseline = train(Recipe())[0]
    for place in ("start", "before-backward"):
        assert same_weights(baseline, train(Recipe(zero_grad=place))[0]), place


def test_previous_batch_and_loss_live_until_they_are_rebound():
    _, step, _ = train(Recipe(), steps=1)
    assert step.batch["x"].shape == (4, 6)
    assert step.loss is not None
    assert all(parameter.grad is None for parameter in step.model.parameters())


def test_step_in_backward_equals_the_ordinary_step_and_keeps_no_gradient():
    workload, model = make_workload(), make_model()
    seen: list[nn.Parameter] = []
    optimizer = PerParameterOptimizers(
        model.parameters(), lambda parameter: torch.optim.Adam([parameter], lr=0.01), seen.append
    )
    step = TrainingStep(workload, model, optimizer, Recipe(step_in_backward=True), CPU, 4, lambda phase: None)
    torch.manual_seed(1)
    for _ in range(3):
        step.run()
    assert same_weights(model, train(Recipe())[0])
    assert len(seen) == 3 * len(list(model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("precision", "inner"), [("amp-bf16", torch.bfloat16), ("amp-fp16", torch.float16)])
def test_autocast_runs_the_forward_pass_in_low_precision(precision, inner):
    dtypes: set[torch.dtype] = set()
    workload, model = make_workload(), make_model()
    model[0].register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    optimizer = torch.optim.Adam(model.parameters())
    before = [parameter.clone() for parameter in model.parameters()]
    step = TrainingStep(workload, model, optimizer, Recipe(precision=precision), CPU, 4, lambda phase: None)
    step.run()
    assert dtypes == {inner}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_bf16_casts_floating_inputs_and_leaves_integers():
    batch = {"x": torch.randn(2), "ids": torch.arange(2), "pair": (torch.randn(1), "text")}
    moved = move_batch(batch, CPU, torch.bfloat16)
    assert moved["x"].dtype == torch.bfloat16
    assert moved["ids"].dtype == torch.int64
    assert moved["pair"][0].dtype == torch.bfloat16
    assert moved["pair"][1] == "text"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)) for _ in range(3))
        self.head = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def test_checkpointing_takes_the_outermost_repeated_blocks_and_keeps_the_gradients():
    torch.manual_seed(0)
    plain, checkpointed = Net(), Net()
    checkpointed.load_state_dict(plain.state_dict())
    assert checkpoint_blocks(checkpointed) == ["layers.0", "layers.1", "layers.2"]
    calls: list[int] = []
    checkpointed.layers[1][0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(4, 6)
    plain(x).sum().backward()
    checkpointed(x).sum().backward()
    assert len(calls) == 2  # once forward, once again in the backward pass
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_checkpointing_without_repeated_blocks_is_refused():
    with pytest.raises(UsageError, match="no repeated blocks"):
        checkpoint_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_a_batch_depends_on_its_number_and_rank_and_on_nothing_drawn_before():
    def draw(*place: int) -> tuple[float, float, float]:
        torch.rand(7), random.random(), np.random.random()
        seed_batch(*place)
        return torch.rand(1).item(), random.random(), float(np.random.random())

    assert draw(0, 0, 1) == draw(0, 0, 1)
    for others in zip(draw(0, 0, 1), draw(0, 0, 2), draw(0, 1, 1), draw(1, 0, 1), draw(-1, 0, 1), strict=True):
        assert len(set(others)) == 5
