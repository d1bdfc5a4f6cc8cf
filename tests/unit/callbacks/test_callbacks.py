"""Real trainings of other people's loops, recorded; those of the libraries are skipped where they are not installed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from memprof.callbacks.recorder import TrainingRecorder, sharing
from memprof.documents.comparison import Comparison, Run
from memprof.documents.recipe import Recipe
from memprof.errors import UsageError
from memprof.report.render.html import to_page


class Net(nn.Module):
    """Takes and returns what the Trainer and Lightning take and return."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.up = nn.Linear(16, width)
        self.down = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        out = self.down(torch.relu(self.up(x))).squeeze(-1)
        return {"loss": nn.functional.mse_loss(out, labels), "out": out} if labels is not None else {"out": out}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def train(recorder: TrainingRecorder, model: Net, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """A plain loop that tells the recorder what it does."""
    recorder.begin(model, optimizer, Recipe(), 8)
    for _ in range(steps):
        recorder.begin_step()
        batch = {"x": torch.randn(8, 16), "labels": torch.randn(8)}
        loss = model(**batch)["loss"]
        loss.backward()
        recorder.begin_phase("optimizer")
        optimizer.step()
        recorder.begin_phase("zero_grad")
        optimizer.zero_grad()
        recorder.end_step()
    recorder.end()


def only_run(path: Path) -> Run:
    (run,) = Comparison.load(path).runs
    return run


def check_run(run: Run, parameters: int, state: int) -> None:
    """The figures that every recorded training of `Net` must have."""
    assert (run.status, run.source, run.device) == ("ok", "measured", "cpu")
    assert run.parameters is not None
    assert run.parameters.bytes == 4 * parameters
    assert run.state is not None
    assert run.state.bytes == state
    assert run.peak is not None
    assert run.peak.allocated_bytes >= 4 * parameters * 2 + state
    assert run.breakdown is not None
    held = run.breakdown.by_category
    assert held["parameters"] == 4 * parameters
    assert held["optimizer_state"] == state
    assert run.timeline is not None
    assert max(run.timeline.allocated_bytes) == run.breakdown.total_bytes
    assert {"forward", "backward", "optimizer"} <= set(run.phases)
    assert "Recorded in a running training" in run.notes[-1]


def test_a_loop_is_recorded_with_what_lived_before(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train(TrainingRecorder(tmp_path / "run.json", steps=3), model, optimizer, 5)
    run = only_run(tmp_path / "run.json")
    check_run(run, count(model), 8 * count(model) + 4 * 4)
    assert run.optimizer.spec == "adam"
    assert run.optimizer.implementation == "for-loop"
    assert run.optimizer.options["lr"] == 1e-3
    assert run.steps is not None
    assert len(run.steps.allocated_bytes) == 3
    assert len(run.steps.seconds) == 1
    assert run.breakdown is not None
    assert {"up", "down"} <= set(run.breakdown.by_module)
    assert "adam" in to_page(Comparison.load(tmp_path / "run.json"))


def test_a_training_that_goes_on_is_counted_from_where_it_is(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 16), torch.randn(8))["loss"].backward()
    optimizer.step()  # state and gradients live already when the recording begins
    train(TrainingRecorder(tmp_path / "run.json", steps=3), model, optimizer, 3)
    first = tmp_path / "fresh.json"
    other = Net()
    train(TrainingRecorder(first, steps=3), other, torch.optim.Adam(other.parameters()), 3)
    late, fresh = only_run(tmp_path / "run.json"), only_run(first)
    assert late.breakdown == fresh.breakdown
    assert late.peak is not None
    assert fresh.peak is not None
    assert late.peak.allocated_bytes == fresh.peak.allocated_bytes


def test_recording_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    results = []
    for name in (None, "run.json"):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if name is not None:
            train(TrainingRecorder(tmp_path / name), model, optimizer, 4)
        else:
            for _ in range(4):
                model(torch.randn(8, 16), torch.randn(8))["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
        assert not model._forward_hooks
        assert not model._forward_pre_hooks
    assert torch.equal(*results)


def test_a_training_shorter_than_the_recording_is_saved(tmp_path: Path) -> None:
    model = Net()
    train(TrainingRecorder(tmp_path / "run.json", steps=9), model, torch.optim.SGD(model.parameters()), 2)
    run = only_run(tmp_path / "run.json")
    assert run.peak is not None
    assert run.breakdown is None


def test_a_fault_of_the_recorder_is_a_warning(tmp_path: Path) -> None:
    model = Net()
    recorder = TrainingRecorder(tmp_path / "run.json")
    with pytest.warns(RuntimeWarning, match="memprof stopped recording"):
        recorder.begin(model, object(), Recipe(), 8)
    recorder.begin_step()
    recorder.end()
    assert not (tmp_path / "run.json").exists()


def test_mistakes_are_found_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("precious")
    with pytest.raises(UsageError, match="--force overwrites it"):
        TrainingRecorder(tmp_path / "old.json")
    with pytest.raises(UsageError, match="at least 3"):
        TrainingRecorder(tmp_path / "new.json", steps=2)


class Data(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.full((16,), float(index)), "labels": torch.tensor(0.5)}


def test_hugging_face_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from memprof.callbacks.huggingface import MemoryRecorder

    model = Net()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=4,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        optim="adamw_torch",
    )
    recorder = MemoryRecorder(tmp_path / "run.json")
    transformers.Trainer(model, arguments, train_dataset=Data(), callbacks=[recorder]).train()
    run = only_run(tmp_path / "run.json")
    check_run(run, count(model), 8 * count(model) + 4 * 4)
    assert run.optimizer.name == "adamw"
    recipe = Comparison.load(tmp_path / "run.json").recipe
    assert (recipe.accumulate, recipe.clip_grad) == (2, 1.0)
    assert [phase.phase for phase in run.timeline.phases] == [  # type: ignore[union-attr]
        *("batch", "forward", "backward", "forward", "backward", "optimizer", "zero_grad"),
    ]


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from memprof.callbacks.lightning import MemoryRecorder

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            return self.net(**batch)["loss"]  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adagrad(self.parameters())

    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_steps=4,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[MemoryRecorder(tmp_path / "run.json")],
        )
        trainer.fit(module, torch.utils.data.DataLoader(Data(), batch_size=8))
    run = only_run(tmp_path / "run.json")
    check_run(run, count(module), 4 * count(module) + 4 * 4)
    assert Comparison.load(tmp_path / "run.json").workload.batch_size == 8
    assert run.optimizer.name == "adagrad"


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """This process is one of two, of which the other is imagined (torch's fake process group)."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_a_rank_s_recipe_says_how_many_share_the_training_and_how(two_ranks: None, tmp_path: Path) -> None:
    recorder = TrainingRecorder(tmp_path / "run.json")
    model = Net()
    train(recorder, model, torch.optim.SGD(model.parameters(), lr=0.1), steps=4)
    saved = Comparison.load(tmp_path / "run.json")
    assert (saved.recipe.strategy, saved.recipe.world_size, saved.runs[0].rank) == ("ddp", 2, 1)
    assert any("one rank" in note for note in saved.runs[0].notes)
    assert sharing(fully_shard(Net())) == {"strategy": "fsdp", "world_size": 2}


def test_a_single_process_is_a_single_rank() -> None:
    assert sharing(Net()) == {"strategy": "single", "world_size": 1}
