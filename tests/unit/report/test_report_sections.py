from __future__ import annotations

import pytest

from memprof.documents.comparison import Breakdown, Capacity, Fit, Parameters
from memprof.documents.recipe import Recipe
from memprof.report.content import sections
from tests.comparisons import GIB, make_answer, make_broken_run, make_comparison, make_run


def test_the_heading_names_only_what_differs_from_the_usual_recipe() -> None:
    usual = sections.heading(make_comparison())
    assert usual == "gpt2 · batch size 2 · seq_len=128, n_layer=12 · cpu · fp32"
    recipe = Recipe(
        precision="amp-bf16",
        accumulate=4,
        checkpoint_activations=True,
        clip_grad=1.0,
        zero_grad="start",
        step_in_backward=True,
    )
    assert sections.heading(make_comparison(recipe=recipe)) == (
        "gpt2 · batch size 2 · seq_len=128, n_layer=12 · cpu · amp-bf16 · 4 micro-batches · activation "
        "checkpointing · gradients clipped at 1 · gradients zeroed at start · step in backward"
    )


def test_frozen_parameters_are_mentioned() -> None:
    frozen = Parameters(count=2_000_000, trainable=500_000, bytes=8_000_000)
    comparison = make_comparison(make_run("adam", 8, parameters=frozen))
    assert sections.model_size(comparison) == "2.00M parameters, 7.63 MiB, 1.50M of them frozen"
    assert sections.model_size(make_comparison(make_broken_run("adam", "oom", None))) is None


@pytest.mark.parametrize(
    ("status", "reason", "line"),
    [
        ("oom", "tried 2 GiB", "a: out of memory: tried 2 GiB"),
        ("oom", "out of memory in step 1", "a: out of memory in step 1"),
        ("failed", "boom", "a: failed: boom"),
        ("failed", None, "a: failed: no reason was given"),
    ],
)
def test_problems_say_it_once(status: str, reason: str | None, line: str) -> None:
    assert sections.problems(make_comparison(make_broken_run("a", status, reason))) == [line]


def test_blocks_count_together_and_layers_of_a_sequential_do_not() -> None:
    by_module = {
        "blocks.0.up": 1,
        "blocks.11.up": 2,
        "h.1.mlp.0": 10,
        "h.2.mlp.0": 20,
        "layer1.0": 100,
        "": 5,
    }
    breakdown = Breakdown(total_bytes=138, phase="forward", by_category={}, by_module=by_module)
    table = sections.module_table(make_comparison(make_run("a", 8, breakdown=breakdown)))
    assert table.rows == (
        ("layer1.0", "100 B"),
        ("h.*.mlp.0", "30 B"),
        ("(outside the model)", "5 B"),
        ("blocks.*.up", "3 B"),
    )


def test_the_largest_modules_of_any_optimizer_are_listed() -> None:
    def run(spec: str, by_module: dict[str, int]) -> object:
        return make_run(
            spec, 8, breakdown=Breakdown(total_bytes=1, phase="forward", by_category={}, by_module=by_module)
        )

    comparison = make_comparison(run("a", {"x": 3, "y": 1}), run("b", {"z": 2, "y": 1}))  # type: ignore[arg-type]
    table = sections.module_table(comparison, most=2)
    assert table.titles == ("module", "a", "b")
    assert table.rows == (("x", "3 B", "-"), ("z", "-", "2 B"))


def test_categories_keep_the_documents_order_and_unknown_ones_come_last() -> None:
    by_category = {"future": 1, "inputs": 1, "parameters": 1, "buffers": 0}
    breakdown = Breakdown(total_bytes=3, phase="forward", by_category=by_category, by_module={})
    comparison = make_comparison(make_run("a", 8, breakdown=breakdown))
    assert sections.present_categories(comparison) == ["parameters", "inputs", "future"]


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (("extrapolated", "extrapolated"), "; ~ is extrapolated from smaller runs, --confirm trains it."),
        (("confirmed", "confirmed"), "; confirmed by training."),
        (("confirmed", "extrapolated"), "; ~ is extrapolated, the others were trained."),
    ],
)
def test_the_remark_says_how_answers_were_found(methods: tuple[str, str], words: str) -> None:
    batch, model = methods
    fit = Fit(batch_size=make_answer("batch_size", 5, method=batch), model=make_answer("n", 7, method=model))
    remark = sections.fit_remark(make_comparison(make_run("a", 8, fit=fit)))
    assert remark == f"Largest batch_size and n within 24.00 GiB, all of the device's memory{words}"


def test_the_remark_names_the_budget_and_leaves_out_what_does_not_matter() -> None:
    fit = Fit(batch_size=make_answer("batch_size", 0))
    comparison = make_comparison(make_run("a", 8, fit=fit), capacity=Capacity(bytes=GIB, source="budget"))
    assert sections.fit_remark(comparison) == "Largest batch_size within 1.00 GiB, the budget."
    assert sections.fit_remark(make_comparison(make_run("a", 8, fit=None))) is None


def test_where_the_values_to_try_end_nothing_is_said_of_the_next_one() -> None:
    ended = Fit(batch_size=make_answer("batch_size", 65536, next_value=None, method="predicted"))
    found = Fit(batch_size=make_answer("batch_size", 700, method="predicted"))
    remark = sections.fit_remark(make_comparison(make_run("a", 8, fit=ended)))
    assert (
        remark == "Largest batch_size within 24.00 GiB, all of the device's memory; + is where the values to try end."
    )
    remark = sections.fit_remark(make_comparison(make_run("a", 8, fit=ended), make_run("b", 8, fit=found)))
    assert remark is not None
    assert remark.endswith("; predicted to fit, the next value not to; + is where the values to try end.")


def test_a_category_that_holds_nothing_is_zero_and_not_absent() -> None:
    comparison = make_comparison(make_run("sgd", 0), make_run("adam", 8))
    table = sections.category_table(comparison)
    assert [row[table.titles.index("optimizer state")] for row in table.rows] == ["0 B", "8 B"]
    bare = Breakdown(total_bytes=1, phase="forward", by_category={"inputs": 1}, by_module={})
    with_bare = make_comparison(make_run("sgd", 0, breakdown=bare), make_run("adam", 8))
    assert sections.category_table(with_bare).rows[0][table.titles.index("optimizer state")] == "0 B"


def test_a_peak_before_the_last_step_is_told_from_the_breakdown() -> None:
    run = make_run("sm3", 8)
    assert run.peak is not None
    assert run.breakdown is not None
    earlier = run.peak.model_copy(update={"allocated_bytes": 2 * run.breakdown.total_bytes, "step": 1})
    assert not any("step" in note for note in sections.notes(make_comparison(run)))
    notes = sections.notes(make_comparison(run.model_copy(update={"peak": earlier})))
    assert notes[-1].startswith(
        "sm3: The peak of 2.25 GiB is step 1's; who holds the memory is shown for the last step"
    )
