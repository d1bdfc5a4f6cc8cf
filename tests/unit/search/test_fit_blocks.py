"""The blocks of a training at a value that was not traced, against the trace of that value."""

from __future__ import annotations

import numpy as np
import pytest

from memprof.allocator.settings import SMALLEST_BLOCK
from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.devices.target import Target
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.run import predict_runs
from memprof.search.scaled_blocks import TracedBlocks, blocks_at
from memprof.search.trace_cache import TraceCache
from memprof.trace.events import Block, Event, PhaseSpan, Trace

GPU = target_of(find_device("rtx-4090"))
SMALL = {"n_layers": 2, "d_model": 96, "n_heads": 2, "vocab_size": 500, "seq_len": 32}
OPTIMIZERS = [parse_optimizer(text) for text in ("sm3", "adam", "adafactor")]
SM3 = 0


def traces(target: Target, vary: Vary, *values: int) -> TraceCache:
    made = TraceCache(WorkloadSpec(model="gpt2", knobs=SMALL), OPTIMIZERS, Recipe(), 4, vary, target)
    for value in values:
        made.add(value)
    assert not made.refused
    return made


@pytest.mark.parametrize(
    ("knob", "known", "value"),
    [("batch_size", (4, 8), 137), ("d_model", (192, 256, 160), 320), ("seq_len", (32, 64, 128), 512)],
)
def test_tensors_follow_from_two_or_three_traces(knob: str, known: tuple[int, ...], value: int):
    made = traces(GPU, Vary(knob=knob), *known, value)
    for number in range(len(OPTIMIZERS)):
        guessed = blocks_at(value, [made.blocks[number][one].tensors_only for one in known])
        traced = made.blocks[number][value].tensors_only
        assert guessed is not None
        assert guessed.signature == traced.signature
        np.testing.assert_allclose(guessed.sizes, traced.sizes, atol=SMALLEST_BLOCK)
        assert guessed.peak(GPU) == traced.peak(GPU)


def test_two_traces_tell_a_width_s_square_from_its_line():
    made = traces(GPU, Vary(knob="d_model"), 192, 256, 384)
    for number in range(len(OPTIMIZERS)):
        guessed = blocks_at(384, [made.blocks[number][one].tensors_only for one in (192, 256)])
        traced = made.blocks[number][384].tensors_only
        assert guessed is not None
        assert guessed.peak(GPU) == traced.peak(GPU)
        assert np.abs(guessed.sizes - traced.sizes).max() <= SMALLEST_BLOCK


def test_nothing_is_guessed_from_traces_of_another_number_of_blocks():
    """SM3's kernel takes a copy more where programs share a walk, which goes by the matrix's size."""
    made = traces(GPU, Vary(knob="d_model"), 96, 192)
    assert blocks_at(384, [made.blocks[SM3][one].tensors_only for one in (96, 192)]) is None


def test_whatever_follows_an_image_s_pixels_goes_by_the_square_of_its_width():
    knobs = {"n_layers": 1, "d_model": 32, "n_heads": 2, "d_ff": 64, "patch_size": 8}
    made = TraceCache(
        WorkloadSpec(model="vit-b16", knobs=knobs), OPTIMIZERS[2:], Recipe(), 2, Vary(knob="image_size"), GPU
    )
    for size in (32, 64, 256):
        made.add(size)
    guessed = blocks_at(256, [made.blocks[0][one].tensors_only for one in (32, 64)])
    assert guessed is not None
    assert guessed.peak(GPU).bytes == pytest.approx(made.blocks[0][256].tensors_only.peak(GPU).bytes, rel=0.05)


@pytest.mark.parametrize("capacity_mib", [20, 40, 60, 90])
def test_fits_is_what_peak_within_says(capacity_mib: int):
    made = traces(GPU, Vary(), 64)
    for target in (GPU, Target()):
        for blocks in (made.blocks[number][64] for number in range(len(OPTIMIZERS))):
            within = blocks.peak_within(target, capacity_mib << 20, blocks.peak(target))
            assert blocks.fits(target, capacity_mib << 20) is within.fits


def test_guess_is_near_where_kernels_take_other_scratch():
    made = traces(GPU, Vary(), 4, 8)
    for number in range(len(OPTIMIZERS)):
        guess = made.guess(number, 1 << 26, 1, 65_536)
        assert guess > 8
        for value, fits in ((guess * 9 // 10, True), (guess * 11 // 10, False)):
            made.add(value)
            assert made.peak_within(number, value, 1 << 26).fits is fits


def test_another_number_of_layers_is_another_order():
    made = traces(GPU, Vary(knob="n_layers"), 1, 2)
    assert blocks_at(3, list(made.blocks[0].values())) is None
    assert made.guess(0, 1 << 30, 1, 100) > 2  # by the line through both


@pytest.mark.parametrize("target", [Target(), GPU], ids=["cpu", "gpu"])
def test_need_is_what_a_prediction_says(target: Target):
    made = traces(target, Vary(), 4)
    workload = WorkloadSpec(model="gpt2", knobs=SMALL)
    for number, run in enumerate(predict_runs(workload, OPTIMIZERS, Recipe(), 4, target)):
        need = made.peak(number, 4)
        assert need.bytes == (run.peak.reserved_bytes or run.peak.allocated_bytes)
        assert need.fits
        if target.kind == "cpu":
            assert need.phase == run.peak.phase


def blocks_of(*sizes: int) -> TracedBlocks:
    """Three blocks one after the other, each freed before the next: what is in use is less than what is cached."""
    events = [event for number, size in enumerate(sizes) for event in (Event(number, size), Event(number, -size))]
    spans = [PhaseSpan(0, 0, "build"), PhaseSpan(2, 1, "forward"), PhaseSpan(4, 1, "backward")]
    return TracedBlocks.of(
        1, Trace(blocks=[Block(size, "", tensor=True) for size in sizes], events=events, spans=spans)
    )


def test_cached_memory_is_given_back_before_it_runs_out():
    mib = 1 << 20
    blocks = blocks_of(40 * mib, 60 * mib, 80 * mib)
    unlimited = blocks.peak(GPU)
    assert (unlimited.bytes, unlimited.phase) == (180 * mib, "backward")
    assert blocks.allocated_bytes() == 80 * mib
    within = blocks.peak_within(GPU, 90 * mib, unlimited)
    assert (within.fits, within.bytes) == (True, 80 * mib)
    over = blocks.peak_within(GPU, 70 * mib, unlimited)
    assert (over.fits, over.bytes, over.phase) == (False, 180 * mib, "backward")
    assert not blocks.peak_within(Target(), 70 * mib, blocks.peak(Target())).fits
