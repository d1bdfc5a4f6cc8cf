"""Fake training: several optimizers on one pass are what each is alone, and faults stay with their owner."""

from __future__ import annotations

from itertools import groupby

import pytest

from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.fake.training import STEPS, FakeRun, fake_runs
from memprof.trace.attribution import build_trace
from memprof.trace.events import Event, Trace
from tests.small_workloads import SMALL

OPTIMIZERS = (*DEFAULT_OPTIMIZERS, "adam,foreach=true", "rmsprop,momentum=0.9", "sm3,variant=I")


def train(
    workload: str,
    optimizers: tuple[str, ...],
    recipe: Recipe | None = None,
    batch_size: int = 2,
    steps: int = STEPS,
) -> list[FakeRun]:
    spec = WorkloadSpec(model=workload, knobs=SMALL.get(workload, {}))
    specs = [parse_optimizer(text) for text in optimizers]
    return fake_runs(spec, specs, recipe or Recipe(), batch_size, steps=steps)


def comparable(run: FakeRun) -> tuple[object, ...]:
    trace: Trace = build_trace(run.entries)
    return trace.blocks, in_order(trace), trace.spans, run.state, run.implementation, run.parameters


def in_order(trace: Trace) -> list[list[Event]]:
    """Return the events, frees in a row sorted: autocast drops its cast weights in the order of a hash table."""
    runs = groupby(trace.events, key=lambda event: event.size < 0)
    return [sorted(events) if freed else list(events) for freed, events in runs]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(step_in_backward=True),
        Recipe(precision="amp-fp16", clip_grad=1.0),
        Recipe(accumulate=2, zero_grad="before-backward"),
        Recipe(checkpoint_activations=True, precision="bf16"),
    ],
    ids=["plain", "step-in-backward", "amp-fp16", "accumulate", "checkpoint"],
)
def test_together_is_as_alone(recipe: Recipe) -> None:
    together = train("gpt2", OPTIMIZERS, recipe)
    for optimizer, run in zip(OPTIMIZERS, together, strict=True):
        assert run.failure is None, run.failure
        (alone,) = train("gpt2", (optimizer,), recipe)
        assert comparable(run) == comparable(alone), optimizer


def test_two_steps_stand_for_all() -> None:
    def last_step(run: FakeRun) -> list[int]:
        trace = build_trace(run.entries)
        start = next(span.start for span in trace.spans if span.step == trace.spans[-1].step)
        return [event.size for event in trace.events[start:]]

    (two,) = train("gpt2", ("adam",))
    (four,) = train("gpt2", ("adam",), steps=STEPS + 2)
    assert last_step(four) == last_step(two)


def test_an_optimizer_that_replaces_parameters_is_trained_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "swapping.py"
    path.write_text(
        "import torch\n"
        "class Swapping(torch.optim.SGD):\n"
        "    @torch.no_grad()\n"
        "    def step(self, closure=None):\n"
        "        for p in self.param_groups[0]['params']:\n"
        "            p.data = p.data - 0.1 * p.grad\n",
        encoding="utf-8",
    )
    swapping = f"{path}:Swapping"
    together = train("mlp", ("adam", swapping, "sgd"))
    for optimizer, run in zip(("adam", swapping, "sgd"), together, strict=True):
        assert comparable(run) == comparable(train("mlp", (optimizer,))[0]), optimizer


def test_an_optimizer_that_fails_leaves_the_others_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "failing.py"
    path.write_text(
        "import torch\n"
        "class Failing(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n"
        "        raise ValueError('no step today')\n",
        encoding="utf-8",
    )
    muon, failing, adam = train("mlp", ("muon", f"{path}:Failing", "adam"))
    assert "updates matrices only" in str(muon.failure)
    assert str(failing.failure).startswith("the optimizer phase of step 1 raised ValueError: no step today")
    assert muon.entries == failing.entries == []
    assert comparable(adam) == comparable(train("mlp", ("adam",))[0])


def test_all_optimizers_may_fail() -> None:
    (muon,) = train("mlp", ("muon",))
    assert "updates matrices only" in str(muon.failure)


def test_a_model_that_decides_by_its_data_is_predicted_with_a_note(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "reading.py"
    path.write_text(
        "import torch\n"
        "from memprof import Workload\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.gate = torch.nn.Linear(4, 4)\n"
        "    def forward(self, x):\n"
        "        y = self.gate(x)\n"
        "        return y if y.sum() > 0 else -y\n"
        "def net():\n"
        "    return Workload(model=Net, batch=lambda n: torch.randn(n, 4), loss=lambda m, b: m(b).sum())\n",
        encoding="utf-8",
    )
    (run,) = train(f"{path}:net", ("sgd",))
    assert f"{path}:9 branches on a value that depends on the data: it was taken to be True" in " ".join(run.guesses)


def test_a_model_may_read_its_masks(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "masked.py"
    path.write_text(
        "import torch\n"
        "from memprof import Workload\n"
        "def net():\n"
        "    def loss(model, batch):\n"
        "        lengths = batch['mask'].sum(1)\n"
        "        out = model(batch['x'][:, : int(lengths.max())])\n"
        "        return out.sum() if bool(batch['mask'].all()) else out[batch['mask'][:, : out.shape[1]]].sum()\n"
        "    def batch(n):\n"
        "        mask = torch.ones(n, 8, dtype=torch.bool)\n"
        "        mask[0, 5:] = False\n"
        "        return {'x': torch.randn(n, 8, 4), 'mask': mask}\n"
        "    return Workload(model=lambda: torch.nn.Linear(4, 4), batch=batch, loss=loss)\n",
        encoding="utf-8",
    )
    (run,) = train(f"{path}:net", ("sgd",), batch_size=2)
    trace = build_trace(run.entries)
    assert (5 + 8) * 4 * 4 in {block.size for block in trace.blocks if block.operator == "aten::index"}


def test_no_memory_is_taken_for_weights_or_batches() -> None:
    import psutil

    before = psutil.Process().memory_info().rss
    spec = WorkloadSpec(model="llama", knobs={"size": "8b", "n_layers": 2})
    (run,) = fake_runs(spec, [parse_optimizer("adam")], Recipe(), 4)
    assert run.parameters is not None
    assert run.parameters.bytes > 5 << 30
    assert psutil.Process().memory_info().rss - before < 500 << 20
