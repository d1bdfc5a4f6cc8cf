"""A step that is repeated against one that is trained: the same allocations, frees and marks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.cuda.semantics import CudaSemantics
from memprof.prediction.fake.training import FakeRun, fake_runs
from memprof.prediction.repeat_step import trace_of, with_repeated_step
from memprof.prediction.run import predict_runs
from memprof.trace.attribution import build_trace
from memprof.trace.events import Block, Event, PhaseSpan, Trace

GPU = target_of(find_device("a100-80gb"))
SPECS = [parse_optimizer(text) for text in DEFAULT_OPTIMIZERS]
SMALL_GPT = WorkloadSpec(
    model="gpt2", knobs={"n_layers": 1, "d_model": 64, "n_heads": 2, "seq_len": 16, "vocab_size": 99}
)


def trained(recipe: Recipe, steps: int) -> list[FakeRun]:
    return fake_runs(SMALL_GPT, SPECS, recipe, 2, CudaSemantics(GPU), steps)


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2}, {"zero_grad": "start"}, {"step_in_backward": True}, {"clip_grad": 1.0}], ids=str
)
def test_the_repeated_step_is_the_next_one(changes: dict[str, Any]) -> None:
    recipe = Recipe(**changes)
    for two, three in zip(trained(recipe, 2), trained(recipe, 3), strict=True):
        assert trace_of(two, GPU) == build_trace(three.entries)


def test_casts_are_dropped_in_any_order() -> None:
    """Autocast forgets its casts in the order of a hash table, which differs from run to run."""

    def sizes(trace: Trace) -> Counter[tuple[int, int]]:
        return Counter((trace.blocks[number].size, size) for number, size in trace.events)

    recipe = Recipe(precision="amp-bf16")
    for two, three in zip(trained(recipe, 2), trained(recipe, 3), strict=True):
        repeated, expected = trace_of(two, GPU), build_trace(three.entries)
        assert repeated.spans == expected.spans
        assert sizes(repeated) == sizes(expected)


def test_a_number_of_steps_that_was_chosen_is_kept() -> None:
    for steps, taken in ((None, 3), (2, 2)):
        run = predict_runs(SMALL_GPT, SPECS[:1], Recipe(), 2, GPU, steps)[0]
        assert len(run.steps.allocated_bytes) == taken


def test_a_step_that_leaves_something_else_is_not_repeated() -> None:
    spans = [PhaseSpan(0, 0, "build"), PhaseSpan(1, 1, "forward"), PhaseSpan(1, 2, "forward")]
    grows = Trace([Block(512, "forward"), Block(1024, "forward")], [Event(0, 512), Event(1, 1024)], spans)
    assert with_repeated_step(grows) is grows


def test_what_is_reserved_has_come_to_rest() -> None:
    """Adam's state is put into holes of the first step, so that the third step of this Llama reserves more."""
    llama = WorkloadSpec(model="llama", knobs={"size": "1b", "n_layers": 12})
    adam = [parse_optimizer("adam")]
    recipe = Recipe(precision="bf16")
    two, five, found = (predict_runs(llama, adam, recipe, 2, GPU, steps)[0] for steps in (2, 5, None))
    assert two.peak.reserved_bytes < five.peak.reserved_bytes == found.peak.reserved_bytes
