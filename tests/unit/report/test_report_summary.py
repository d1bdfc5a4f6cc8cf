from __future__ import annotations

from memprof.documents.comparison import Comparison, Fit, Steps
from memprof.report.content.summary import summarize
from tests.comparisons import COUNT, GIB, MIB, make_answer, make_broken_run, make_comparison, make_run


def text(comparison: Comparison) -> str:
    return " ".join(summarize(comparison))


def test_the_lowest_peak_is_set_against_the_reference() -> None:
    assert summarize(make_comparison()) == [
        "Measured: sm3 keeps 1.20 MiB of state where adam keeps 949.40 MiB; its peak is 45 % lower "
        "(1.13 GiB instead of 2.05 GiB), set by the backward pass.",
        "Peaks against adam: sgd -45 %; sm3 -45 %; adafactor -45 %; adagrad -23 %; sm3,momentum=0.9 -23 %.",
        "Within 24.00 GiB: largest batch 61 instead of 52 (extrapolated); largest n_layer 48 with both (extrapolated).",
    ]


def test_the_first_of_nearly_equal_peaks_is_chosen() -> None:
    small = [make_run("adafactor", 2 * MIB), make_run("sm3", MIB)]
    assert "adafactor keeps 2.00 MiB" in text(make_comparison(*small, make_run("adam", 8 * COUNT)))


def test_an_optimizer_without_state_is_no_replacement_but_where_it_is_alone() -> None:
    runs = [make_run("sgd", 0), make_run("adam", 8 * COUNT)]
    assert "sgd keeps 0 B of state where adam" in text(make_comparison(*runs))
    assert "adagrad keeps" in text(make_comparison(*runs, make_run("adagrad", 4 * COUNT)))


def test_where_activations_set_the_peak_it_says_that_a_smaller_state_does_not_help() -> None:
    runs = [make_run(spec, state, activations=90 * GIB) for spec, state in (("sm3", MIB), ("adam", 8 * COUNT))]
    assert (
        "The optimizers' peaks differ by less than 2 %: activations (98 % of the peak) in the backward pass "
        "set them, so a smaller state hardly lowers the peak here."
    ) in summarize(make_comparison(*runs))


def test_alike_peaks_of_alike_states_blame_nothing() -> None:
    runs = [make_run("adamw", 8 * COUNT), make_run("adam", 8 * COUNT)]
    assert "The optimizers' peaks differ by less than 2 %; the backward pass sets them." in summarize(
        make_comparison(*runs)
    )


def test_a_reference_that_is_itself_the_lowest() -> None:
    comparison = make_comparison(make_run("sgd", 0), make_run("adam", 8 * COUNT), reference="sgd")
    assert "adam keeps 949.40 MiB of state where sgd keeps 0 B; its peak is 82 % higher" in text(comparison)


def test_without_a_reference_the_largest_state_is_the_reference() -> None:
    comparison = make_comparison(make_run("adagrad", 4 * COUNT), make_run("sm3", MIB), reference=None)
    assert "sm3 keeps 1.00 MiB of state where adagrad" in text(comparison)


def test_one_optimizer_stands_alone() -> None:
    assert summarize(make_comparison(make_run("adam", 8 * COUNT))) == [
        "Measured: adam keeps 949.40 MiB of state (8.00 bytes per parameter); its peak is 2.05 GiB, "
        "set by the backward pass.",
        "Within 24.00 GiB: largest batch 52 (extrapolated); largest n_layer 48 (extrapolated).",
    ]


def test_confirmed_answers_are_not_called_extrapolated() -> None:
    fit = Fit(batch_size=make_answer("batch_size", 61, method="confirmed"))
    runs = [make_run("sm3", MIB, fit=fit), make_run("adam", 8 * COUNT, fit=fit)]
    assert "Within 24.00 GiB: largest batch 61 with both." in summarize(make_comparison(*runs))


def test_knobs_that_do_not_matter_and_absent_fits_are_not_mentioned() -> None:
    runs = [
        make_run("sm3", MIB, fit=Fit(batch_size=make_answer("batch_size", None))),
        make_run("adam", 8 * COUNT),
    ]
    assert "Within" not in text(make_comparison(*runs))
    assert "Within" not in text(make_comparison(make_run("adam", 8, fit=None)))


def test_runs_without_figures_are_named() -> None:
    broken = [
        make_broken_run("a", "oom", "full"),
        make_broken_run("b", "oom", None),
        make_broken_run("c", "failed", "x"),
    ]
    comparison = make_comparison(make_run("adam", 8 * COUNT), *broken)
    assert summarize(comparison)[-1] == "a and b ran out of memory; c failed."
    assert summarize(make_comparison(*broken)) == ["No optimizer finished: every run ran out of memory or failed."]
    assert summarize(make_comparison(broken[0])) == ["No optimizer finished: every run ran out of memory."]
    assert summarize(make_comparison(runs=[])) == ["No optimizer has finished."]


def test_predicted_figures_are_called_predicted() -> None:
    assert text(make_comparison(make_run("adam", 8, source="predicted"))).startswith("Predicted: adam")


def test_a_slower_step_is_mentioned_where_enough_steps_tell_it_from_noise() -> None:
    def steps(*seconds: float) -> Steps:
        return Steps(seconds=list(seconds), losses=[1.0], allocated_bytes=[1] * len(seconds))

    def shown(slow: Steps) -> str:
        fast = make_run("adam", 8 * COUNT, steps=steps(0.9, 0.9, 0.9, 1.0, 1.1))
        return text(make_comparison(make_run("sm3", MIB, steps=slow), fast))

    assert "A step takes 2.2 times as long: 2.00 s instead of 900 ms." in shown(steps(2, 2, 2, 2, 1.9))
    assert "A step takes" not in shown(steps(2, 2, 2, 2, 1.1))
    assert "A step takes" not in shown(steps(2, 2))


def test_a_range_that_ended_before_the_memory_did_is_a_least_answer() -> None:
    ended = Fit(batch_size=make_answer("batch_size", 65536, next_value=None, method="predicted"))
    found = Fit(batch_size=make_answer("batch_size", 700, method="predicted"))
    runs = [make_run("sm3", MIB, fit=ended), make_run("adam", 8 * COUNT, fit=found)]
    assert "Within 24.00 GiB: largest batch at least 65536 instead of 700." in summarize(make_comparison(*runs))
    alone = summarize(make_comparison(make_run("sm3", MIB, fit=ended)))
    assert "Within 24.00 GiB: largest batch at least 65536." in alone
