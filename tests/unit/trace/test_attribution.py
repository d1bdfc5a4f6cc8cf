from __future__ import annotations

from memprof.trace.attribution import build_trace
from memprof.trace.events import (
    Allocation,
    Entry,
    Event,
    Free,
    LabelMark,
    OperatorBegin,
    OperatorEnd,
    PhaseMark,
    RangeMark,
    Trace,
)
from memprof.trace.peaks import holdings_at, span_peaks, step_levels


def operator(name: str, *inside: Entry, outputs: list[int], module: str = "", recompute: bool = False) -> list[Entry]:
    return [OperatorBegin(name, module, recompute), *inside, OperatorEnd(outputs)]


def block_at(trace: Trace, size: int):
    (block,) = [block for block in trace.blocks if block.size == size]
    return block


def test_forward_tensor_alive_at_backward_is_an_activation_with_its_module():
    trace = build_trace(
        [
            PhaseMark(1, "forward"),
            *operator("aten::mm", Allocation(10, 100), outputs=[10], module="layer.0"),
            *operator("aten::relu", Allocation(20, 50), outputs=[20], module="layer.1"),
            Free(20),
            PhaseMark(1, "backward"),
        ]
    )
    kept = block_at(trace, 100)
    assert (kept.category, kept.module, kept.operator, kept.tensor) == ("activations", "layer.0", "aten::mm", True)
    assert block_at(trace, 50).category == "temporaries"


def test_scratch_within_a_kernel_is_a_temporary_and_no_tensor():
    trace = build_trace(
        [PhaseMark(1, "forward"), *operator("conv", Allocation(10, 64), Allocation(20, 8), Free(10), outputs=[20])]
    )
    scratch = block_at(trace, 64)
    assert scratch.category == "temporaries"
    assert not scratch.tensor


def test_block_that_outlives_its_operator_unseen_is_unattributed():
    trace = build_trace([PhaseMark(1, "forward"), *operator("resize", Allocation(10, 64), outputs=[])])
    assert block_at(trace, 64).category == "unattributed"


def test_what_is_made_outside_of_operators_is_a_tensor_once_they_are_followed():
    """As the random states that checkpointing keeps; what was there before is anybody's."""
    trace = build_trace(
        [
            Allocation(5, 16_000),
            PhaseMark(1, "forward"),
            *operator("aten::mm", Allocation(10, 100), outputs=[10]),
            Allocation(20, 5056),
            Allocation(30, 8),
            Allocation(40, 24),
            Free(40),
            PhaseMark(1, "backward"),
            Allocation(50, 5057),
        ]
    )
    found = {block.size: (block.category, block.tensor) for block in trace.blocks}
    assert found == {
        16_000: ("unattributed", False),
        100: ("activations", True),
        5056: ("activations", True),
        8: ("activations", False),
        24: ("temporaries", True),
        5057: ("temporaries", True),
    }


def test_recomputed_tensor_is_an_activation():
    entries = operator("aten::mm", Allocation(10, 100), outputs=[10], module="block", recompute=True)
    trace = build_trace([PhaseMark(1, "backward"), *entries])
    assert block_at(trace, 100).category == "activations"


def test_label_applies_to_the_block_that_lives_at_the_address_now():
    trace = build_trace(
        [
            Allocation(10, 32),
            Free(10),
            Allocation(10, 48),
            LabelMark("parameters", {10: "head", 99: "nowhere"}),
        ]
    )
    assert block_at(trace, 32).category == "unattributed"
    assert block_at(trace, 48).category == "parameters"
    assert block_at(trace, 48).module == "head"


def test_python_number_is_a_temporary_or_kept_for_the_backward_pass():
    entries = [PhaseMark(1, "forward"), Allocation(1, 8), Allocation(2, 4), Free(2), PhaseMark(1, "backward")]
    trace = build_trace(entries)
    assert block_at(trace, 4).category == "temporaries"
    assert block_at(trace, 8).category == "activations"
    assert not block_at(trace, 8).tensor


def test_operators_are_listed_by_phase():
    trace = build_trace([PhaseMark(1, "optimizer"), *operator("aten::_fused_adam_", outputs=[])])
    assert trace.operators == {"optimizer": {"aten::_fused_adam_"}}


def test_free_of_a_block_from_before_the_recording_is_ignored():
    assert build_trace([Free(1234), Allocation(1, 5)]).events == [Event(0, 5)]


def test_holdings_sum_to_the_level_and_levels_start_where_the_phase_starts():
    trace = build_trace(
        [
            Allocation(1, 100),
            LabelMark("parameters", {1: "a"}),
            PhaseMark(1, "forward"),
            *operator("mm", Allocation(2, 30), outputs=[2], module="b"),
            PhaseMark(1, "backward"),
            *operator("mm_backward", Allocation(3, 7), outputs=[3], module="b"),
            Free(2),
        ]
    )
    peaks = {peak.phase: peak for peak in span_peaks(trace)}
    holdings = holdings_at(trace, peaks["backward"].event)
    assert holdings.total_bytes == peaks["backward"].peak_bytes == 137
    assert holdings.by_category == {"parameters": 100, "activations": 30, "temporaries": 7}
    assert holdings.by_module == {"a": 100, "b": 37}
    assert holdings.by_category_and_module == {
        "parameters": {"a": 100},
        "activations": {"b": 30},
        "temporaries": {"b": 7},
    }
    assert step_levels(trace, 1) == {"forward": [100, 130], "backward": [130, 137]}


def within(name: str, *inside: Entry) -> list[Entry]:
    return [RangeMark(name, enters=True), *inside, RangeMark(name, enters=False)]


def test_what_fsdp_gathers_are_parameters_and_what_it_exchanges_is_communication():
    gathered = within(
        "FSDP::pre_forward (layer)",
        *within("FSDP::all_gather (layer)", *operator("aten::empty", Allocation(1, 64), outputs=[1])),
        *within(
            "FSDP::all_gather_copy_out (layer)",
            Allocation(2, 48),
            *operator("fsdp::split_with_sizes_copy", Allocation(3, 24), Free(3), outputs=[]),
        ),
    )
    kept = operator("mm", Allocation(4, 32), outputs=[4])
    trace = build_trace([PhaseMark(1, "forward"), *gathered, *kept, PhaseMark(1, "backward")])
    found = {block.size: (block.category, block.module, block.tensor) for block in trace.blocks}
    assert found == {
        64: ("communication", "layer", True),
        48: ("parameters", "layer", True),
        24: ("temporaries", "layer", False),
        32: ("activations", "", True),
    }


def test_gradients_that_fsdp_reduces_are_gradients_before_and_after():
    reduced = within(
        "FSDP::post_backward_reduce (layer)",
        *operator("aten::empty", Allocation(2, 80), outputs=[2]),
        Free(1),
        *operator("aten::empty", Allocation(3, 40), outputs=[3]),
    )
    trace = build_trace(
        [
            PhaseMark(1, "backward"),
            *operator("mm", Allocation(1, 72), outputs=[1], module="layer"),
            *operator("mm", Allocation(5, 8), outputs=[5]),
            *reduced,
            LabelMark("gradients", {3: "layer"}),
            Free(2),
            Free(5),
        ]
    )
    found = {block.size: block.category for block in trace.blocks}
    assert found == {72: "gradients", 80: "communication", 40: "gradients", 8: "temporaries"}
