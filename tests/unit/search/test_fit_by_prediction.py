"""The search by prediction: the matrix is what trying every value finds, with few traces shared by all."""

from __future__ import annotations

import pytest

from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.devices.target import Target
from memprof.documents.comparison import FitAnswer
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary, parse_vary
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.search.by_prediction import PredictedSearch, first_values
from memprof.search.trace_cache import TraceCache

GPU = target_of(find_device("rtx-4090"))
SPECS = [parse_optimizer(text) for text in DEFAULT_OPTIMIZERS]
SMALL = {"n_layers": 2, "d_model": 64, "n_heads": 2, "vocab_size": 500, "seq_len": 32}
MIB = 1 << 20


def make_traces(model: str, knobs: dict, vary: str, target: Target = GPU, optimizers=SPECS) -> TraceCache:
    return TraceCache(WorkloadSpec(model=model, knobs=knobs), optimizers, Recipe(), 4, parse_vary(vary), target)


def search(traces: TraceCache, capacities: list[int], present: int) -> list[FitAnswer | None]:
    return PredictedSearch(traces, capacities, present).run()


@pytest.mark.parametrize("target", [GPU, Target()], ids=["gpu", "cpu"])
def test_matrix_is_what_trying_every_value_finds(target: Target):
    capacities = [2 * MIB, 9 * MIB, 24 * MIB]
    answers = search(make_traces("mlp", {"n_layers": 2}, "batch_size=1:300", target), capacities, 8)
    slow = make_traces("mlp", {"n_layers": 2}, "batch_size=1:300", target)
    for number, answer in enumerate(answers):
        optimizer, capacity = number % len(SPECS), capacities[number // len(SPECS)]
        around = [one for one in (answer.value, answer.next_value) if one]
        for value in around:
            if value not in slow.parameters:
                slow.add(value)
        if answer.value:
            assert slow.peak_within(optimizer, answer.value, capacity).fits
            assert answer.peak_bytes <= capacity
        if answer.next_value:
            assert answer.next_value == answer.value + 1
            assert not slow.peak_within(optimizer, answer.next_value, capacity).fits
        else:
            assert answer.value == 300
            assert answer.notes == ["Every value up to batch_size=300, the end of the range, fits."]


@pytest.mark.parametrize(
    ("vary", "capacity", "most"),
    [
        ("batch_size", 16 << 30, 4),
        ("n_layers", 2 << 30, 6),
        ("d_model=64:8192:64", 16 << 30, 4),
        ("d_model", 12 << 30, 6),
        ("seq_len=32:65536:32", 16 << 30, 5),
    ],
)
def test_typical_cell_takes_few_evaluations(vary: str, capacity: int, most: int):
    traces = make_traces("gpt2", {"n_layers": 1, "seq_len": 256}, vary, optimizers=SPECS[2:3])
    present = {"batch_size": 8, "n_layers": 1, "seq_len": 256}
    (answer,) = search(traces, [capacity], present.get(traces.vary.knob, 768))
    assert answer.value > 2
    assert len(answer.points) <= most
    assert {answer.value, answer.next_value} <= {point.value for point in answer.points}


def test_traces_are_shared_by_optimizers_and_devices():
    traces = make_traces("gpt2", {"n_layers": 1, "seq_len": 64}, "batch_size", optimizers=SPECS[:3])
    answers = search(traces, [size << 30 for size in (8, 12, 16)], 8)
    assert all(answer.value > 8 for answer in answers)
    assert len(traces.parameters) <= 2 + 2 * len(answers)  # plain bisection would take eight or more for each


def test_values_that_the_model_refuses_are_left_out():
    traces = make_traces("gpt2", {**SMALL, "n_heads": 6, "d_model": 96}, "d_model=1:512", optimizers=SPECS[:1])
    (answer,) = search(traces, [48 * MIB], 96)
    assert answer.value % 6 == 0
    assert answer.next_value == answer.value + 6
    assert answer.parameters == traces.parameters[answer.value]
    assert any("does not divide" in note for note in answer.notes)


def test_nothing_fits_says_what_the_smallest_needs():
    (answer,) = search(make_traces("mlp", {}, "batch_size", optimizers=SPECS[2:3]), [3 * MIB], 8)
    assert (answer.value, answer.next_value, answer.peak_bytes) == (0, 1, None)
    assert answer.next_peak_bytes > 3 * MIB
    assert answer.notes == ["The weights alone take 4.56 MiB."]


def test_memory_that_falls_as_the_knob_grows_is_said():
    knobs = {"n_layers": 1, "d_model": 32, "n_heads": 2, "d_ff": 32, "image_size": 64}
    traces = make_traces("vit-b16", knobs, "patch_size=2:64:2", optimizers=SPECS[-1:])
    (answer,) = search(traces, [4 * MIB], 4)
    assert any("falls as patch_size grows" in note or "does not grow" in note for note in answer.notes)


def test_range_without_a_value_that_is_taken_is_a_usage_error():
    with pytest.raises(UsageError, match=r"no value is taken.*does not divide"):
        search(make_traces("gpt2", {**SMALL, "n_heads": 2}, "d_model=65:67:2", optimizers=SPECS[:1]), [96 * MIB], 64)


def test_model_that_cannot_be_predicted_is_a_usage_error():
    with pytest.raises(UsageError, match="n_heads=7 does not divide"):
        search(make_traces("gpt2", {**SMALL, "n_heads": 7}, "batch_size", optimizers=SPECS[:1]), [96 * MIB], 8)


def test_optimizer_that_cannot_train_the_model_has_no_answer():
    traces = make_traces("mlp", {}, "batch_size", optimizers=[parse_optimizer("muon"), parse_optimizer("sgd")])
    muon, sgd = search(traces, [96 * MIB], 8)
    assert muon is None
    assert "matrices only" in traces.failures[0]
    assert sgd.value > 0


def test_search_begins_with_the_present_value_and_its_half():
    assert first_values(Vary(), 8) == [8, 4]
    assert first_values(Vary(), 1) == [1, 2]
    assert first_values(Vary(low=16, high=20), 8) == [16, 20]
    assert first_values(Vary(low=8, high=64, step=8), 30) == [24, 8]
