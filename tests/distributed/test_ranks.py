"""Trials on several ranks of this machine: what they say, what they need, and that none is left behind."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from memprof.api import compare
from memprof.documents.comparison import CATEGORIES, Comparison, Run
from memprof.documents.jobs import Findings, Inquiry, Outcome, Step, Trial
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import MemprofError, UsageError
from memprof.measurement.ranks.rank import check_devices, own_device
from memprof.user_code import raised
from memprof.workers.death import WorkerDiedError
from memprof.workers.launcher import Launcher
from tests import children

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
RANKS = Path(__file__).parents[1] / "data" / "models" / "ranks.py"


def trial(attribute: str = "parts", optimizer: str = "adam", batch_size: int = 2, **recipe) -> Trial:
    return Trial(
        workload=WorkloadSpec(model=f"{RANKS}:{attribute}"),
        optimizer=parse_optimizer(optimizer),
        device="cpu",
        batch_size=batch_size,
        recipe=Recipe(**recipe),
    )


def trained(launcher: Launcher, given: Trial) -> Run:
    outcome = launcher.run(given)
    assert isinstance(outcome, Outcome)
    assert outcome.run.status == "ok", outcome.run.reason
    return outcome.run


@pytest.mark.parametrize("optimizer", ["sgd,lr=0.1", "sm3,lr=0.1"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_train_as_one_process_does_on_the_whole_batch(launcher: Launcher, strategy, optimizer) -> None:
    alone = trained(launcher, trial(optimizer=optimizer, batch_size=6))
    shared = trained(launcher, trial(optimizer=optimizer, strategy=strategy, world_size=3))
    assert shared.steps is not None
    assert alone.steps is not None
    assert shared.steps.losses == pytest.approx(alone.steps.losses, rel=1e-5)
    assert len(set(alone.steps.losses)) == 4


def test_ddp_has_the_whole_state_on_every_rank(launcher: Launcher) -> None:
    alone = trained(launcher, trial())
    shared = trained(launcher, trial(strategy="ddp", world_size=2))
    assert shared.state == alone.state
    assert shared.parameters == alone.parameters
    assert [(each.rank, each.state_bytes) for each in shared.ranks] == [(0, alone.state.bytes), (1, alone.state.bytes)]
    assert shared.job_state_bytes == 2 * alone.state.bytes


@pytest.mark.parametrize("world_size", [3, 4])
def test_fsdp_has_a_shard_of_the_state_on_every_rank(launcher: Launcher, world_size: int) -> None:
    shared = trained(launcher, trial(strategy="fsdp", world_size=world_size))
    rows = [(7, 6), (7, 1), *[(7, 7), (7, 1)] * 2, (3, 7), (3, 1)]
    assert shared.parameters.count == sum(n * m for n, m in rows)
    for each in shared.ranks:
        longest = [-(-n // world_size) for n, _ in rows]
        own = sum(max(0, min(c, n - each.rank * c)) * m for c, (n, m) in zip(longest, rows, strict=True))
        assert each.parameters_bytes == 4 * own
        assert each.state_bytes == 8 * own + 4 * len(rows)  # Adam's two moments, and its step counters
    assert shared.job_state_bytes == 8 * shared.parameters.count + 4 * len(rows) * world_size
    assert shared.rank == 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_run_is_the_rank_with_the_highest_peak(launcher: Launcher, strategy: str) -> None:
    given = trial("larger_there", strategy=strategy, world_size=2, clip_grad=1.0)
    run, again = trained(launcher, given), trained(launcher, given)
    assert [each.peak.allocated_bytes for each in again.ranks] == [each.peak.allocated_bytes for each in run.ranks]
    assert run.rank == 1
    assert run.peak == run.ranks[1].peak
    assert run.ranks[0].peak.allocated_bytes < run.ranks[1].peak.allocated_bytes
    assert sum(run.breakdown.by_category.values()) == run.breakdown.total_bytes
    assert set(run.breakdown.by_category) <= set(CATEGORIES)


def test_a_comparison_goes_on_after_an_optimizer_that_fails(launcher: Launcher, tmp_path: Path) -> None:
    saved = tmp_path / "ranks.json"
    recipe = Recipe(strategy="fsdp", world_size=2)
    compared = compare(
        f"{RANKS}:parts",
        batch_size=2,
        optimizers=["sparseadam", "sgd"],
        device="cpu",
        recipe=recipe,
        fit=False,
        launcher=launcher,
    )
    compared.save(saved)
    assert Comparison.load(saved) == compared
    failed, ok = compared.runs
    assert (failed.status, failed.ranks, ok.status, len(ok.ranks)) == ("failed", [], "ok", 2)
    assert "batch size 2 per rank, 4 per step" in compared.to_markdown()


def test_the_first_ranks_steps_are_told(launcher: Launcher) -> None:
    steps: list[Step] = []
    launcher.run(trial(strategy="ddp", world_size=2), steps.append)
    assert [(step.stage, step.step) for step in steps] == [("build", 0)] + [("step", n) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_without_memory_ends_all(launcher: Launcher, strategy: str) -> None:
    outcome = launcher.run(trial("runs_out", strategy=strategy, world_size=3))
    assert isinstance(outcome, Outcome)
    assert (outcome.run.status, outcome.run.rank) == ("oom", 1)
    assert outcome.run.reason == "rank 1: out of memory in the forward phase of step 2"
    assert workers() == []


def test_a_rank_that_dies_ends_all(launcher: Launcher) -> None:
    outcome = launcher.run(trial("is_killed", strategy="fsdp", world_size=3))
    assert isinstance(outcome, Outcome)
    assert (outcome.run.status, outcome.run.rank) == ("failed", 1)
    assert outcome.run.reason == "rank 1: the worker process ended without a result (SIGKILL)"
    assert workers() == []


def test_what_a_rank_raises_is_told(launcher: Launcher) -> None:
    outcome = launcher.run(trial("raises", strategy="ddp", world_size=2))
    assert isinstance(outcome, Outcome)
    told = r"rank 1: the forward phase of step 2 raised ValueError: no such sample \(tests/data/models/ranks.py:\d+\)"
    assert re.fullmatch(told, outcome.run.reason or "")
    with pytest.raises(MemprofError, match="the loss is a float; return a scalar tensor"):
        launcher.run(trial("no_tensor", strategy="fsdp", world_size=2))
    assert workers() == []


def test_what_every_rank_says_is_said_of_no_rank(launcher: Launcher) -> None:
    outcome = launcher.run(trial("parts", "sparseadam", strategy="fsdp", world_size=2))
    assert isinstance(outcome, Outcome)
    assert (outcome.run.status, outcome.run.rank) == ("failed", None)
    assert outcome.run.reason.startswith("the optimizer phase of step 1 raised RuntimeError: SparseAdam")


def test_an_optimizer_that_takes_no_shards_is_said_to_be_one() -> None:
    """Which one does not is another one in every PyTorch; the words are those of 2.8 and 2.13."""
    for words in ("aten.pow_.Scalar: in-place operations that require placement changes", "got mixed DTensor"):
        assert "does not take FSDP's shards (DTensor): RuntimeError" in raised("the optimizer", RuntimeError(words))
    assert raised("the optimizer", RuntimeError("drawn without replacement")).startswith("the optimizer raised")


def test_ddp_with_parameters_that_take_no_part_is_a_sentence(launcher: Launcher) -> None:
    with pytest.raises(MemprofError, match=r"needs every trainable parameter in every loss, and some of .*:has_unused"):
        launcher.run(trial("has_unused", strategy="ddp", world_size=2))
    assert trained(launcher, trial("has_unused", strategy="fsdp", world_size=2)).rank == 0


RECIPES = {
    "accumulation and clipping": {"accumulate": 2, "clip_grad": 0.01},
    "checkpointing": {"checkpoint_activations": True},
    "in the backward pass": {"step_in_backward": True},
    "zeroed first": {"zero_grad": "start"},
}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_as_one_process_does(launcher: Launcher, name: str, strategy: str) -> None:
    recipe = RECIPES[name]
    if strategy == "ddp" and "step_in_backward" in recipe:
        pytest.skip("refused by the recipe")
    alone = trained(launcher, trial(optimizer="sm3,lr=0.1", batch_size=4, **recipe))
    shared = trained(launcher, trial(optimizer="sm3,lr=0.1", strategy=strategy, world_size=2, **recipe))
    assert shared.steps.losses == pytest.approx(alone.steps.losses, rel=1e-5)
    assert shared.breakdown.by_category["optimizer_state"] == shared.state.bytes


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_mixed_precision_keeps_float32_weights_and_gathers_in_bfloat16(launcher: Launcher, strategy: str) -> None:
    full, mixed = (
        trained(launcher, trial(strategy=strategy, world_size=2, precision=precision))
        for precision in ("fp32", "amp-bf16")
    )
    assert (mixed.state, mixed.parameters) == (full.state, full.parameters)
    held = [run.breakdown.by_category["parameters"] for run in (full, mixed)]
    gathered = held[0] - held[1]
    assert gathered > 0 if strategy == "fsdp" else gathered == 0


def test_a_limit_holds_for_each_rank(launcher: Launcher) -> None:
    large = WorkloadSpec(model="mlp", knobs={"d_model": 4096})
    limited = trial(strategy="fsdp", world_size=2).model_copy(update={"workload": large, "limit_bytes": 4 << 20})
    outcome = launcher.run(limited)
    assert isinstance(outcome, Outcome)
    assert outcome.run.status == "oom"
    assert "out of memory in the forward phase of step 1" in outcome.run.reason


def test_fsdp_builds_the_whole_model_before_the_limit_holds(launcher: Launcher) -> None:
    """Who trains on GPUs makes it on the host, which is no device's memory."""
    limited = {"limit_bytes": 1 << 30}
    for strategy, status in (("fsdp", "ok"), ("ddp", "oom")):
        outcome = launcher.run(trial("grows_only_freely", strategy=strategy, world_size=2).model_copy(update=limited))
        assert isinstance(outcome, Outcome)
        assert outcome.run.status == status


def workers() -> list[psutil.Process]:
    """The processes of this one's launcher that are neither the fork server nor done."""
    grandchildren = [each for child in psutil.Process().children() for each in child.children(recursive=True)]
    return [each for each in grandchildren if each.status() != psutil.STATUS_ZOMBIE]


def test_no_rank_outlives_its_worker(launcher: Launcher) -> None:
    """The worker has started the ranks and waits for them; rank 1 waits for ever."""

    def kill(step: Step) -> None:
        if step.step == 2:
            (server,) = [child for child in psutil.Process().children() if child.children()]
            (worker,) = server.children()
            assert len(worker.children()) == 2
            family.extend(worker.children())
            worker.kill()

    family: list[psutil.Process] = []
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        launcher.run(trial("hangs", strategy="fsdp", world_size=2), kill)
    assert psutil.wait_procs(family, timeout=children.SECONDS)[1] == []


def test_ranks_share_the_memory_of_the_cpu(launcher: Launcher) -> None:
    alone, shared = (
        launcher.run(Inquiry(workload=WorkloadSpec(model="mlp"), optimizers=[], devices=["cpu"], world_size=world_size))
        for world_size in (1, 2)
    )
    assert isinstance(alone, Findings)
    assert isinstance(shared, Findings)
    assert shared.device.memory_bytes == alone.device.memory_bytes // 2


def test_a_device_for_every_rank() -> None:
    assert [own_device("cuda:0", rank) for rank in (0, 3)] == ["cuda:0", "cuda:3"]
    assert own_device("cpu", 3) == "cpu"
    check_devices("cpu", 4)
    with pytest.raises(UsageError, match="leave cuda:1 to CUDA_VISIBLE_DEVICES"):
        check_devices("cuda:1", 2)


def test_too_few_gpus_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UsageError, match="needs 2 GPUs and this machine has 1; use --device cpu, or predict"):
        check_devices("cuda:0", 2)
