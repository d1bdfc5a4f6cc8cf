from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from memprof.gate.baseline import Baseline, record_changes, update
from memprof.gate.explain import causes
from memprof.gate.formats.github import escape_message, escape_property
from memprof.gate.judge import Policy, judge
from memprof.gate.limits import parse_limits
from memprof.gate.metrics import METRICS
from memprof.gate.verdict import Verdict
from tests.gates import baseline_of, budget_of, make_figures

SIZES = st.integers(0, 2**45)
METRIC = st.sampled_from(["state_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "process_bytes"])
SOURCE = st.sampled_from(["measured", "predicted"])
HOLDERS = st.dictionaries(
    st.sampled_from(["activations", "parameters", "temporaries"]),
    st.dictionaries(st.sampled_from(["", "a", "a.b", "a.b.c", "a.*.d", "e"]), SIZES, max_size=4),
    max_size=3,
)


def verdict_of(metric: str, limit: str, value: int, base: int, source: str) -> Verdict:
    made = make_figures(source=source, device="cpu", values={metric: value})
    accepted = made.model_copy(update={"values": {metric: base}})
    budget = budget_of(f'{metric} = "{limit}"', 'optimizers = ["adam"]')
    (verdict,) = judge([budget], [made], baseline_of(accepted), Policy())
    return verdict


@given(METRIC, SIZES, SIZES, SOURCE)
def test_a_ceiling_is_kept_exactly_by_what_is_not_above_it(metric: str, value: int, ceiling: int, source: str) -> None:
    assert (verdict_of(metric, f"{ceiling} B", value, 0, source).weight == "ok") is (value <= ceiling)


@given(METRIC, SIZES, SIZES, SOURCE, st.integers(0, 5000))
def test_growth_fails_beyond_the_larger_of_limit_and_noise(
    metric: str, value: int, base: int, source: str, hundredths: int
) -> None:
    verdict = verdict_of(metric, f"+{hundredths / 100:.2f}%", value, base, source)
    share = max(Fraction(hundredths, 10_000), METRICS[metric].noise_of(source))  # type: ignore[arg-type]
    assert (verdict.status == "exceeded") is (value > base + int(base * share))
    assert (verdict.status == "improved") is (value < base - int(base * share))


@given(METRIC, SIZES, SIZES, SIZES, SOURCE, st.sampled_from(["+0%", "+7%", "+1 MiB", "3 GiB"]))
def test_more_memory_never_turns_a_failure_into_a_pass(
    metric: str, value: int, more: int, base: int, source: str, limit: str
) -> None:
    failed = verdict_of(metric, limit, value, base, source).status == "exceeded"
    assert not failed or verdict_of(metric, limit, value + more, base, source).status == "exceeded"


@given(METRIC, SIZES, SIZES, SOURCE)
def test_an_update_makes_every_limit_on_growth_pass_and_a_second_one_changes_nothing(
    metric: str, value: int, base: int, source: str
) -> None:
    made = make_figures(source=source, device="cpu", values={metric: value})
    before = baseline_of(made.model_copy(update={"values": {metric: base}}))
    after, _ = update(before, [made], ["pretrain"], complete=True)
    budget = budget_of(f'{metric} = "+0%"', 'optimizers = ["adam"]')
    (verdict,) = judge([budget], [made], after, Policy())
    assert verdict.weight == "ok"
    assert update(after, [made], ["pretrain"], complete=True) == (after, [])
    assert not record_changes(made, after.record("pretrain", "adam"))


@given(HOLDERS)
def test_a_baseline_survives_a_round_trip(holders: dict[str, dict[str, int]]) -> None:
    baseline = baseline_of(make_figures(holders=holders))
    assert Baseline.model_validate_json(baseline.to_json(), strict=True) == baseline


@given(HOLDERS, HOLDERS)
def test_causes_account_for_every_byte(old: dict[str, dict[str, int]], new: dict[str, dict[str, int]]) -> None:
    def total(holders: dict[str, dict[str, int]]) -> int:
        return sum(sum(modules.values()) for modules in holders.values())

    found = causes(old, new)
    assert sum(cause.change_bytes for cause in found) == total(new) - total(old)
    back = {cause.category: cause.change_bytes for cause in causes(new, old)}
    assert back == {cause.category: -cause.change_bytes for cause in found}
    for cause in found:
        inside = cause.module
        part = sum(
            sign * size
            for sign, holders in ((1, new), (-1, old))
            for module, size in holders.get(cause.category, {}).items()
            if inside and f"{module}.".startswith(f"{inside}.")
        )
        assert cause.module_bytes == part  # an independent count of what the named module grew by
        assert not inside or 4 * abs(part) >= 3 * abs(cause.change_bytes)


@given(st.text())
def test_an_annotation_stays_on_its_line_and_can_be_read_back(text: str) -> None:
    message, value = escape_message(text), escape_property(text)
    assert not {"\n", "\r"} & set(message + value)
    assert not {":", ","} & set(value)
    read = value.replace("%3A", ":").replace("%2C", ",").replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%")
    assert read == text


@given(SIZES)
def test_a_limit_in_bytes_reads_back(size: int) -> None:
    (limit,) = parse_limits(METRICS["state_bytes"], f"{size} B", "error", None)
    assert limit.bound == size
