from __future__ import annotations

import pytest

from memprof.gate.entry_figures import Fingerprint, Holders
from memprof.gate.explain import causes, explain, largest_holders
from memprof.gate.metrics import METRICS
from tests.gates import GIB, MIB, make_figures, make_setup, with_values

PEAK = METRICS["peak_allocated_bytes"]


def grown(holders: Holders, **values: int):  # type: ignore[no-untyped-def]
    old = make_figures()
    merged = {category: dict(modules) for category, modules in old.holders.items()}
    for category, modules in holders.items():
        for module, size in modules.items():
            merged.setdefault(category, {})[module] = merged.get(category, {}).get(module, 0) + size
    return old, with_values(old.model_copy(update={"holders": merged}), **values)


def test_the_category_and_the_innermost_module_that_grew_are_named() -> None:
    old, new = grown({"activations": {"layers.*.mlp.0": 600 * MIB, "layers.*.mlp.2": 600 * MIB}})
    (cause,) = causes(old.holders, new.holders)
    # Neither layer makes up three quarters, their module does.
    assert cause.sentence() == "activations +1.17 GiB in layers.*.mlp"


def test_a_module_that_dominates_is_named_to_the_last_dot() -> None:
    old, new = grown({"activations": {"layers.*.mlp.0": 900 * MIB, "head": 100 * MIB}})
    assert (
        causes(old.holders, new.holders)[0].sentence()
        == "activations +1000.00 MiB, +900.00 MiB of it in layers.*.mlp.0"
    )


def test_growth_in_many_places_names_none() -> None:
    old, new = grown({"activations": dict.fromkeys("abcd", 100 * MIB)})
    assert causes(old.holders, new.holders)[0].sentence() == "activations +400.00 MiB"


def test_what_shrank_elsewhere_does_not_hide_what_grew() -> None:
    old, new = grown(
        {"activations": {"layers.*.mlp.0": 2 * GIB, "layers.*.norm": -GIB}, "parameters": {"head": MIB}},
        peak_allocated_bytes=11 * GIB,
    )
    told = explain(PEAK, old, new)
    assert told == ["activations +1.00 GiB, +2.00 GiB of it in layers.*.mlp.0"]  # a MiB beside a GiB is no cause


def test_causes_in_the_direction_of_the_change_come_first() -> None:
    old, new = grown({"activations": {"a": -3 * GIB}, "temporaries": {"b": 4 * GIB}}, peak_allocated_bytes=11 * GIB)
    assert explain(PEAK, old, new) == ["temporaries +4.00 GiB in b", "activations -3.00 GiB in a"]
    assert explain(PEAK, new, old) == ["temporaries -4.00 GiB in b", "activations +3.00 GiB in a"]


def test_a_figure_of_one_category_is_explained_by_it_alone() -> None:
    old, new = grown({"optimizer_state": {"head": GIB}, "activations": {"a": 9 * GIB}}, state_bytes=2 * GIB)
    assert explain(METRICS["state_bytes"], old, new) == ["optimizer state +1.00 GiB in head"]
    # Where the allocator's blocks are larger than what is in them, the figure itself says how much.
    less = with_values(new, state_bytes=GIB + 900 * MIB)
    assert explain(METRICS["state_bytes"], old, less) == ["optimizer state +900.00 MiB, most of it in head"]


def test_reserved_memory_beyond_the_allocated_is_a_cause_of_its_own() -> None:
    old = make_figures()
    new = with_values(old, peak_reserved_bytes=13 * GIB)
    assert explain(METRICS["peak_reserved_bytes"], old, new) == ["reserved, not in use +2.00 GiB"]
    assert explain(PEAK, old, new) == []


def test_what_was_trained_otherwise_is_said() -> None:
    old, new = grown({"activations": {"a": GIB}}, peak_allocated_bytes=11 * GIB)
    new = new.model_copy(
        update={
            "setup": make_setup(batch_size=16, recipe={"precision": "bf16"}),
            "fingerprint": Fingerprint(torch="2.14.0"),
            "phase": "optimizer",
            "device": "a100-40gb",
        }
    )
    assert explain(PEAK, old, new)[1:] == [
        "batch_size 8 is now 16",
        "precision unset is now bf16",
        "device rtx-4090 is now a100-40gb",
        "the peak moved from the backward pass to the optimizer step",
        "torch 2.13.0 is now 2.14.0",
    ]


def test_without_a_baseline_the_largest_holders_are_named() -> None:
    told = largest_holders(PEAK, make_figures())
    assert told[0] == "activations 7.00 GiB, 6.00 GiB of it in layers.*.mlp"
    assert [sentence.split(" ")[0] for sentence in told] == ["activations", "parameters", "optimizer"]
    assert largest_holders(METRICS["state_bytes"], make_figures()) == ["optimizer state 1.00 GiB in layers.*.mlp.0"]


@pytest.mark.parametrize("holders", [{}, {"activations": {"": 5}}])
def test_nothing_to_explain_is_no_crash(holders: Holders) -> None:
    figures = make_figures(holders=holders)
    assert explain(PEAK, figures, figures) == []
    largest_holders(PEAK, figures)
