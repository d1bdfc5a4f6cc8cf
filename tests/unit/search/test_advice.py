"""What `memprof advise` tries, how it ranks what it finds, and that its figures are those of a prediction."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import memprof
from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.documents.advice import AdviceReport, PredictedFigures
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.optimizers.registry import KNOWN_OPTIMIZERS
from memprof.prediction.run import predict_runs
from memprof.report.content import advice as report_of
from memprof.search.advise.changes import FOREACH, FUSED, TrainingSetup, combinations_of, possible_changes
from memprof.search.advise.suggestions import why_nothing
from memprof.workers.launcher import Launcher

FAULTY = Path(__file__).parents[2] / "data" / "models" / "faulty.py"
SMALL = {"n_layers": 2, "d_model": 128, "n_heads": 2, "vocab_size": 2000, "seq_len": 128}
MIB, GIB = 1 << 20, 1 << 30


def names(optimizer: str = "adam", batch_size: int = 8, cuda: bool = True, **recipe) -> list[str]:
    setup = TrainingSetup(parse_optimizer(optimizer), Recipe(**recipe), batch_size)
    return [change.name for change in possible_changes(setup, cuda) if "8-bit" not in change.name]


@pytest.fixture(scope="module")
def advice(launcher: Launcher) -> AdviceReport:
    return memprof.advise("gpt2", knobs=SMALL, device="1GiB", budget="140 MiB", batch_size=32, launcher=launcher)


def test_everything_that_applies_is_tried():
    assert names() == [
        *("fused adam", "adam as a loop", "activation checkpointing", "step-in-backward", "amp-bf16"),
        *("micro-batch 4 x 2", "micro-batch 2 x 4", "micro-batch 1 x 8"),
        *("sm3", "sm3 with momentum", "adafactor", "expandable segments"),
    ]


def test_nothing_is_tried_that_is_there_already_or_contradicts():
    assert "zero_grad" in names(zero_grad="start")
    assert not {"activation checkpointing", "amp-bf16"} & set(names(checkpoint_activations=True, precision="bf16"))
    assert "step-in-backward" not in names(accumulate=2)
    assert "step-in-backward" not in names(clip_grad=1.0)
    assert not any("micro-batch" in name for name in names(step_in_backward=True))
    assert not any("micro-batch" in name for name in names(batch_size=7))
    assert "sm3 without momentum" in names("sm3,momentum=0.9")
    assert "fused adam" not in names("adam,fused=true")
    assert not {"expandable segments", "adam as a loop"} & set(names(cuda=False))


def test_ranks_may_shard_what_each_of_them_holds():
    assert "fsdp" not in names()
    replicated = names(strategy="ddp", world_size=4)
    assert "fsdp" in replicated
    assert "step-in-backward" not in replicated
    assert "fsdp" not in names(strategy="ddp", world_size=4, precision="amp-fp16")
    sharded = names(strategy="fsdp", world_size=4)
    assert "fsdp" not in sharded
    assert "step-in-backward" in sharded


def test_combinations_are_of_different_parts_that_go_together():
    changes = possible_changes(TrainingSetup(parse_optimizer("adam"), Recipe(), 8), cuda=True)
    for group in combinations_of(changes):
        parts = {change.part for change in group}
        assert len(parts) == len(group) in (2, 3)
        assert not {"micro-batch", "step-in-backward"} <= parts


def test_implementations_are_those_that_torch_has():
    for name, known in KNOWN_OPTIMIZERS.items():
        kind = getattr(torch.optim, known.class_path.partition(":")[2], None)
        if not known.class_path.startswith("torch.optim:") or kind is None:
            continue
        options = inspect.signature(kind).parameters
        assert (name in FUSED) == ("fused" in options), name
        assert (name in FOREACH) == ("foreach" in options), name


def test_figures_are_those_of_a_prediction(advice: AdviceReport):
    target = target_of(find_device("1GiB"))
    (run,) = predict_runs(WorkloadSpec(model="gpt2", knobs=SMALL), [parse_optimizer("adam")], Recipe(), 32, target)
    assert advice.now.peak_bytes == run.peak.reserved_bytes
    checkpointing = next(one for one in advice.suggestions if one.changes == ["activation checkpointing"])
    recipe = Recipe(checkpoint_activations=True)
    (run,) = predict_runs(WorkloadSpec(model="gpt2", knobs=SMALL), [parse_optimizer("adam")], recipe, 32, target)
    assert checkpointing.figures.peak_bytes == run.peak.reserved_bytes
    assert checkpointing.saves_bytes == advice.now.peak_bytes - checkpointing.figures.peak_bytes


def test_what_fits_comes_first_and_disturbs_little(advice: AdviceReport):
    assert not advice.now.fits
    fitting = [one for one in advice.suggestions if one.fits]
    assert fitting == advice.suggestions[: len(fitting)]
    assert [one.disturbance for one in fitting] == sorted(one.disturbance for one in fitting)
    assert any(one.changes[0].startswith("micro-batch") for one in fitting)


def test_no_combination_holds_a_part_that_fits_by_itself(advice: AdviceReport):
    fitting = [set(one.changes) for one in advice.suggestions if one.fits]
    assert not any(small < large for small in fitting for large in fitting)


def test_what_saves_nothing_is_told_why(advice: AdviceReport):
    fused = next(one for one in advice.suggestions if one.changes == ["fused adam"])
    assert fused.remark is not None
    assert "activations" in fused.remark
    assert "set the peak; the optimizer's state is" in fused.remark
    assert any(line.startswith("fused adam saves nothing here: ") for line in report_of.no_use(advice))
    assert "fused adam" not in {row[0] for row in report_of.table(advice).rows}


def test_memory_that_is_freed_and_stays_reserved_is_told_as_fragmentation():
    now = PredictedFigures(
        peak_bytes=22 * GIB, fits=False, phase="forward", held={"activations": 20 * GIB}, held_phase="backward"
    )
    then = now.model_copy(update={"held": {"activations": 19 * GIB}})
    assert why_nothing(now, then, {"optimizer"}) == (
        "1.00 GiB less is allocated, but fragmentation keeps the reserved memory as high as before"
    )
    assert why_nothing(now, now, {"optimizer"}).endswith("set the peak; the optimizer's state is 0 % of it")


def test_advice_survives_a_round_trip(advice: AdviceReport, tmp_path):
    advice.save(tmp_path / "advice.json")
    assert AdviceReport.load(tmp_path / "advice.json") == advice
    text = advice.to_markdown()
    assert "It does not fit" in text
    assert "--checkpoint-activations" in text


def test_later_micro_batches_find_the_memory_as_the_third_does():
    workload, target = WorkloadSpec(model="gpt2", knobs={**SMALL, "n_layers": 1}), target_of(find_device("1GiB"))
    specs = [parse_optimizer(text) for text in ("sm3", "adam")]
    three, five = (predict_runs(workload, specs, Recipe(accumulate=n), 4, target) for n in (3, 5))
    for some, more in zip(three, five, strict=True):
        assert some.peak.reserved_bytes == more.peak.reserved_bytes
        assert some.peak.allocated_bytes == more.peak.allocated_bytes


def test_training_that_fits_needs_no_advice(launcher: Launcher):
    report = memprof.advise("mlp", device="1GiB", batch_size=1, launcher=launcher)
    assert report.now.fits
    assert all(len(one.changes) == 1 for one in report.suggestions)
    (sentence,) = report_of.sentences(report)
    assert sentence.startswith("It fits as it is; it needs ")


def test_what_does_not_go_with_the_model_and_what_is_out_of_reach_are_said(launcher: Launcher):
    """A model of one layer has no blocks to recompute; in 1 MiB there is no room for cuBLAS alone."""
    report = memprof.advise(f"{FAULTY}:good", device="1GiB", budget="1MiB", batch_size=1, launcher=launcher)
    checkpointing = next(one for one in report.suggestions if one.changes == ["activation checkpointing"])
    assert checkpointing.figures is None
    assert "finds no repeated blocks" in checkpointing.reason
    assert not any(one.fits for one in report.suggestions)
    assert "Nothing makes it fit; the nearest is" in " ".join(report_of.sentences(report))
    assert any("cannot be predicted" in line for line in report_of.no_use(report))
