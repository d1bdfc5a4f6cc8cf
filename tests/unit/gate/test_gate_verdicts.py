from __future__ import annotations

import pytest

from memprof.errors import ExitCode
from memprof.gate.entry_figures import Figures, Fingerprint
from memprof.gate.judge import Policy, judge
from memprof.gate.report import exit_code
from memprof.gate.verdict import Verdict
from memprof.gate.wording import details, headline
from tests.gates import GIB, MIB, baseline_of, budget_of, make_figures, with_values

ADAM = 'optimizers = ["adam"]'
MEASURED = {"source": "measured", "device": "cuda:0"}


def verdicts_of(line: str, made: Figures | None, base: Figures | None = None, **policy: bool) -> list[Verdict]:
    accepted = baseline_of(*([base] if base is not None else []))
    return judge([budget_of(line, ADAM)], [made] if made is not None else [], accepted, Policy(**policy))


def one(line: str, made: Figures | None, base: Figures | None = None, **policy: bool) -> Verdict:
    (verdict,) = verdicts_of(line, made, base, **policy)
    return verdict


def test_a_figure_passes_at_its_ceiling_and_fails_a_byte_above() -> None:
    at = with_values(make_figures(), peak_allocated_bytes=20 * GIB)
    assert one('peak_allocated_bytes = "20 GiB"', at).weight == "ok"
    above = one('peak_allocated_bytes = "20 GiB"', with_values(at, peak_allocated_bytes=20 * GIB + 1))
    assert (above.status, above.weight) == ("exceeded", "error")
    # Where both print alike, bytes are shown as they are.
    assert "is 21474836481 bytes, 1 B over the limit of 21474836480 bytes" in headline(above)


def test_a_floor_holds_at_itself_and_fails_below() -> None:
    at = with_values(make_figures(), max_batch_size=16)
    assert one("max_batch_size = 16", at).weight == "ok"
    below = one("max_batch_size = 16", with_values(at, max_batch_size=14))
    assert headline(below) == "pretrain/adam: max_batch_size is 14, 2 below the limit of 16"
    endless = at.model_copy(update={"values": {}, "unlimited": ["max_batch_size"]})
    assert one("max_batch_size = 16", endless).weight == "ok"


def test_growth_is_held_against_the_baseline() -> None:
    base = make_figures()
    grown = with_values(base, peak_allocated_bytes=11 * GIB)
    verdict = one('peak_allocated_bytes = "+2%"', grown, base)
    assert verdict.bound == int(10 * GIB * 1.02)
    assert headline(verdict).endswith("over the limit of 10.20 GiB (baseline 10.00 GiB +2%)")
    assert one('peak_allocated_bytes = "+1 GiB"', grown, base).weight == "ok"
    assert one('peak_allocated_bytes = "+1023 MiB"', grown, base).weight == "error"


def test_what_is_predicted_is_exact_and_what_is_measured_may_move_by_its_noise() -> None:
    base = make_figures()
    grown = with_values(base, peak_allocated_bytes=10 * GIB + 1)
    assert one('peak_allocated_bytes = "+0%"', grown, base).weight == "error"
    base, grown = (figures.model_copy(update=MEASURED) for figures in (base, grown))
    verdict = one('peak_allocated_bytes = "+0%"', grown, base)
    assert verdict.weight == "ok"
    assert details(verdict) == [("note", "widened to ±2 %, the noise of the figure")]
    beyond = with_values(base, peak_allocated_bytes=int(10.21 * GIB))
    assert one('peak_allocated_bytes = "+0%"', beyond, base).weight == "error"
    state = with_values(base, state_bytes=GIB + 1)
    assert one('state_bytes = "+0%"', state, base).weight == "error"


def test_an_improvement_beyond_the_limit_is_a_stale_baseline() -> None:
    base = make_figures()
    better = with_values(base, peak_allocated_bytes=9 * GIB)
    verdict = one('peak_allocated_bytes = "+2%"', better, base)
    assert (verdict.status, verdict.weight) == ("improved", "warning")
    assert "the baseline is stale" in headline(verdict)
    assert one('peak_allocated_bytes = "+2%"', better, base, fail_on_improvement=True).weight == "error"
    slightly = with_values(base, peak_allocated_bytes=int(9.9 * GIB))
    assert one('peak_allocated_bytes = "+2%"', slightly, base, fail_on_improvement=True).weight == "ok"
    more = with_values(base, max_batch_size=20)
    fewer = with_values(base, max_batch_size=10)
    assert one('max_batch_size = "-1"', more, fewer).status == "improved"
    assert one('max_batch_size = "-1"', fewer, more).status == "exceeded"


def test_without_a_baseline_growth_is_new_and_strict_fails_it() -> None:
    made = make_figures()
    assert (one('state_bytes = "+0%"', made).status, one('state_bytes = "+0%"', made).weight) == ("new", "note")
    assert one('state_bytes = "+0%"', made, strict=True).weight == "error"
    without = made.model_copy(update={"values": {}})
    assert one('state_bytes = "+0%"', made, without).status == "new"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": Fingerprint(torch="2.14.0")}, "torch 2.13.0 is now 2.14.0"),
        ({"fingerprint": Fingerprint(torch="2.13.0", gpu="B")}, "gpu None is now B"),
        ({"fingerprint": Fingerprint(torch="2.13.0", allocator_conf="x:y")}, "allocator_conf None is now x:y"),
        ({"device": "cuda:1"}, "device cuda:0 is now cuda:1"),
        ({"source": "predicted"}, "measured is now predicted"),
    ],
)
def test_another_environment_fails_measured_figures(changes: dict[str, object], said: str) -> None:
    base = make_figures(**MEASURED)
    made = base.model_copy(update=changes)
    verdict = one('peak_allocated_bytes = "+2%"', made, base)
    assert (verdict.status, verdict.weight) == ("other-environment", "error")
    assert said in headline(verdict)
    assert one('peak_allocated_bytes = "+2%"', made, base, other_environment=True).weight == "ok"
    # A ceiling needs no baseline, and the state is the same everywhere.
    assert one('peak_allocated_bytes = "20 GiB"', made, base).weight == "ok"
    assert one('state_bytes = "+0%"', made, base).weight == "ok"


def test_predictions_are_compared_across_versions_and_devices() -> None:
    base = make_figures()
    made = base.model_copy(update={"fingerprint": Fingerprint(torch="2.14.0"), "device": "a100-40gb"})
    assert one('peak_allocated_bytes = "+2%"', made, base).weight == "ok"


def test_what_was_not_made_fails() -> None:
    limit = 'peak_allocated_bytes = "20 GiB"'
    assert (one(limit, None).status, one(limit, None).weight) == ("missing", "error")
    dead = make_figures(status="failed", values={}, reason="the worker process ended without a result (SIGKILL)")
    assert headline(one(limit, dead)).endswith("the trial failed: the worker process ended without a result (SIGKILL)")
    unmeasured = make_figures(values={})
    verdict = one('peak_reserved_bytes = "20 GiB"', unmeasured)
    assert (verdict.status, verdict.weight) == ("unmeasured", "error")
    assert "gives no reserved peak" in headline(verdict)


def test_a_run_that_does_not_fit_fails_even_without_limits() -> None:
    reason = "out of memory in the backward phase of step 1: 25.00 GiB needed, 23.00 GiB there"
    empty = make_figures(status="oom", values={}, reason=reason)
    (verdict,) = verdicts_of("", empty)
    assert (verdict.status, verdict.weight) == ("does-not-fit", "error")
    assert headline(verdict) == f"pretrain/adam: does not fit: {reason}"
    known = make_figures(status="oom", reason=reason)
    assert [v.status for v in verdicts_of('peak_allocated_bytes = "9 GiB"', known)] == ["does-not-fit", "exceeded"]
    (fits,) = verdicts_of("", make_figures())
    assert (fits.status, fits.weight, fits.metric) == ("passed", "ok", None)


def test_what_was_accepted_and_is_gone_is_missing() -> None:
    made, sm3 = make_figures(), make_figures("sm3")
    renamed = make_figures(entry="old-name")
    baseline = baseline_of(made, sm3, renamed)
    budget = budget_of(ADAM)
    verdicts = judge([budget], [made], baseline, Policy(), expected=["pretrain"])
    lost = [(v.entry, v.optimizer) for v in verdicts if v.status == "missing" and v.weight == "error"]
    assert lost == [("pretrain", "sm3"), ("old-name", "adam")]
    # Where only some entries were to be run, nothing is known of the others.
    assert [v.entry for v in judge([budget], [made], baseline, Policy()) if v.status == "missing"] == ["pretrain"]


def test_the_level_of_an_entry_and_of_a_limit_decides_what_fails() -> None:
    made = make_figures()
    assert one('level = "warn"\nstate_bytes = "1 KiB"', made).weight == "warning"
    assert one('state_bytes = { limit = "1 KiB", level = "warn" }', made).weight == "warning"
    assert one('level = "warn"\nstate_bytes = "1 KiB"', None).weight == "warning"
    verdict = one('message = "ask us"\nstate_bytes = "1 KiB"', made)
    assert (verdict.weight, verdict.message) == ("error", "ask us")


def test_nvml_only_warns_and_resident_memory_fails() -> None:
    made = with_values(make_figures(**MEASURED), process_bytes=2 * GIB)
    verdict = one('process_bytes = "1 GiB"', made)
    assert verdict.weight == "warning"
    assert ("note", "NVML's figure only warns: other processes influence it") in details(verdict)
    assert one('process_bytes = "1 GiB"', made.model_copy(update={"device": "cpu"})).weight == "error"
    assert one('process_bytes = "1 GiB"', make_figures(values={"process_bytes": 2 * GIB})).weight == "error"


def test_exit_codes_by_what_failed() -> None:
    def code(*made: Figures, line: str = 'state_bytes = "1 GiB"') -> ExitCode:
        specs = ", ".join(f'"{figures.optimizer}"' for figures in made)
        verdicts = judge([budget_of(line, f"optimizers = [{specs}]")], list(made), baseline_of(), Policy())
        return exit_code(verdicts, made)

    fine, over = make_figures("sm3"), with_values(make_figures("adam"), state_bytes=2 * GIB)
    dead = make_figures("adagrad", status="failed", values={}, reason="killed")
    wrong = make_figures("sgd", status="failed", values={}, reason="no such knob", mistake=True)
    assert code(fine) == 0
    assert code(fine, over) == 1
    assert code(fine, over, dead) == 3
    assert code(fine, over, dead, wrong) == 2
    assert code(dead, line='level = "warn"') == 0


def test_the_headline_of_new_says_so() -> None:
    assert headline(one('state_bytes = "+64 MiB"', make_figures())) == (
        "pretrain/adam: state_bytes, limit +64 MiB: the baseline has no figure yet to compare with"
    )
    assert 64 * MIB == 67108864
