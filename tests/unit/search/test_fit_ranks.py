"""One answer for all ranks: per-rank and global batch, accumulation that is kept or follows the batch size."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import memprof
from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.devices.target import Target
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary, parse_vary, with_global_batch
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.prediction.cpu.semantics import CpuSemantics
from memprof.prediction.cuda.semantics import CudaSemantics
from memprof.prediction.fake.training import fake_runs
from memprof.prediction.repeat_step import trace_of
from memprof.report.content import fit as fits
from memprof.report.render.terminal import make_console
from memprof.search.bracket import Bracket
from memprof.search.by_prediction import PredictedSearch
from memprof.search.scaled_blocks import DevicePeak, TracedBlocks
from memprof.search.trace_cache import TraceCache
from memprof.training.micro_batches import recipe_at, step_samples, traced
from memprof.workers.launcher import Launcher

GPU = target_of(find_device("rtx-4090"))
SMALL = {"n_layers": 1, "d_model": 64, "n_heads": 2, "vocab_size": 500, "seq_len": 32}
FOUR = Recipe(strategy="fsdp", world_size=4)
MIB = 1 << 20


def test_batch_sizes_are_those_that_make_up_the_global_batch():
    vary = with_global_batch(Vary(), 96, FOUR)
    assert list(vary.values) == [1, 2, 3, 4, 6, 8, 12, 24]
    assert (vary.last, vary.below(7), vary.below(0), list(vary.between(3, 8))) == (24, 6, 1, [3, 4, 6, 8])
    assert 6 in vary
    assert 5 not in vary
    assert [recipe_at(FOUR, vary, value).accumulate for value in vary.values] == [24, 12, 8, 6, 4, 3, 2, 1]
    assert {step_samples(FOUR, vary, value)[1] for value in vary.values} == {96}
    assert list(with_global_batch(parse_vary("batch_size=2:12:2"), 96, FOUR).values) == [2, 4, 6, 8, 12]


def test_accumulation_is_kept_unless_the_global_batch_is_given():
    recipe = FOUR.model_copy(update={"accumulate": 3})
    assert recipe_at(recipe, Vary(), 7) == recipe
    assert step_samples(recipe, Vary(), 7) == (3, 84)


@pytest.mark.parametrize(
    ("vary", "samples", "changes", "words"),
    [
        ("n_layers", 96, {}, "--global-batch goes with --vary batch_size, and n_layers"),
        ("batch_size", 97, {}, "97 cannot be shared by 4 ranks evenly; give 96"),
        ("batch_size", 1, {}, "give 4"),
        ("batch_size", 0, {}, "give 4"),
        ("batch_size", 96, {"accumulate": 2}, "leave --accumulate out"),
        ("batch_size", 96, {"step_in_backward": True}, "--step-in-backward drops"),
        ("batch_size=5:7:2", 96, {}, "no batch size there divides the 24 samples of each rank"),
    ],
)
def test_mistakes_are_one_sentence(vary: str, samples: int, changes: dict[str, Any], words: str):
    with pytest.raises(UsageError) as caught:
        with_global_batch(parse_vary(vary), samples, FOUR.model_copy(update=changes))
    assert words in str(caught.value)


@given(
    samples=st.sampled_from([1, 2, 30, 96, 97, 720, 65_536]),
    boundary=st.integers(0, 800),
    error=st.integers(-50, 50),
    first=st.integers(1, 900),
)
def test_search_among_divisors_finds_what_trying_each_finds(samples: int, boundary: int, error: int, first: int):
    vary = Vary(samples=samples)
    search = Bracket(vary, [vary.below(first)])
    while (value := search.next_value(lambda low, high: boundary + error)) is not None:
        assert value in vary
        assert value not in search.tried
        search.note(value, value <= boundary)
    divisors = [one for one in range(1, samples + 1) if samples % one == 0]
    assert search.fitting == max((one for one in divisors if one <= boundary), default=None)
    assert search.failing == min((one for one in divisors if one > boundary), default=None)


def peaks_of(recipe: Recipe, target: Target) -> list[DevicePeak]:
    semantics = CudaSemantics(target) if target.kind == "cuda" else CpuSemantics()
    specs = [parse_optimizer(text) for text in ("sm3", "adam")]
    made = fake_runs(WorkloadSpec(model="gpt2", knobs=SMALL), specs, recipe, 4, semantics)
    return [TracedBlocks.of(4, trace_of(fake, target)).peak(target) for fake in made]


@pytest.mark.parametrize("target", [GPU, Target()], ids=["gpu", "cpu"])
@pytest.mark.parametrize("ranks", [{}, {"strategy": "ddp", "world_size": 2}, {"strategy": "fsdp", "world_size": 2}])
def test_later_micro_batches_find_the_memory_as_the_traced_ones_do(target: Target, ranks: dict[str, Any]):
    recipe = Recipe(accumulate=7, **ranks)
    assert traced(recipe).accumulate == 3
    assert peaks_of(traced(recipe), target) == peaks_of(recipe, target)


def test_search_by_prediction_follows_the_accumulation():
    vary = with_global_batch(Vary(), 960, Recipe())
    optimizers = [parse_optimizer("adam")]
    traces = TraceCache(WorkloadSpec(model="gpt2", knobs=SMALL), optimizers, Recipe(), 8, vary, Target())
    (answer,) = PredictedSearch(traces, [40 * MIB], 8).run()
    assert 960 % answer.value == 0
    assert answer.next_value == min(one for one in vary.values if one > answer.value)
    assert (answer.accumulate, answer.global_batch) == (960 // answer.value, 960)
    for value in (answer.value, answer.next_value):
        whole = TraceCache(traces.workload, optimizers, Recipe(accumulate=960 // value), 8, Vary(), Target())
        whole.add(value)
        assert whole.peak_within(0, value, 40 * MIB).fits is (value == answer.value)


def test_both_batches_are_shown_and_all_ranks_are_trained(launcher: Launcher):
    report = memprof.fit(
        "mlp",
        optimizers=["adam"],
        devices=["cpu"],
        budget="40MiB",
        global_batch=4096,
        recipe=Recipe(strategy="ddp", world_size=2),
        launcher=launcher,
    )
    answer = report.cells[0].answer
    assert (answer.method, answer.global_batch) == ("confirmed", 4096)
    assert answer.value * answer.accumulate * 2 == 4096
    assert answer.next_value == 2 * answer.value
    shown = io.StringIO()
    fits.show(report, make_console(shown))
    words = " ".join(shown.getvalue().split())
    assert "that of a micro-batch on every one of 2 ranks" in words
    assert "as many of them as make up 4096" in words
    assert "| accumulate |" in report.to_markdown()
    assert report.to_frame().loc[0, "global_batch"] == 4096
