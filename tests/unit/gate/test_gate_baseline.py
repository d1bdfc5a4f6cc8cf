from __future__ import annotations

import json
from pathlib import Path

import pytest

from memprof.errors import UsageError
from memprof.gate.baseline import load_baseline, update
from memprof.gate.entry_figures import Figures, Fingerprint, best_of, figures_of
from tests.comparisons import make_broken_run, make_comparison, make_run
from tests.gates import GIB, MIB, baseline_of, make_figures, make_setup, report_of, with_values


def saved(tmp_path: Path, *figures: Figures) -> Path:
    path = tmp_path / "memprof-baseline.json"
    path.write_text(baseline_of(*figures).to_json())
    return path


def test_the_file_is_sorted_json_with_whole_bytes_and_survives_a_round_trip(tmp_path: Path) -> None:
    path = saved(tmp_path, make_figures("sm3"), make_figures("adam"))
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"
    baseline = load_baseline(path)
    assert baseline is not None
    assert baseline == baseline_of(make_figures("sm3"), make_figures("adam"))
    assert baseline.record("pretrain", "adam") == make_figures("adam").record()
    assert load_baseline(tmp_path / "none.json") is None


def test_a_report_serves_as_baseline(tmp_path: Path) -> None:
    report = report_of([], [make_figures("adam"), make_figures("sgd", status="failed", values={})])
    (tmp_path / "report.json").write_text(report.to_json())
    baseline = load_baseline(tmp_path / "report.json")
    assert baseline is not None
    assert baseline.entries == baseline_of(make_figures("adam")).entries


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[: len(text) // 2], "the baseline is not JSON"),
        (lambda text: text.replace("memprof.baseline/1", "memprof.baseline/2"), "newer memprof (memprof.baseline/2)"),
        (lambda text: text.replace("memprof.baseline/1", "other/1"), "is not a baseline: its schema is 'other/1'"),
        (lambda text: "[]", "is not a baseline"),
        (lambda text: "", "the baseline is not JSON"),
        (lambda text: text.replace(f'"state_bytes": {GIB}', '"state_bytes": 1.5'), "values.state_bytes: Input should"),
        (lambda text: text.replace(f'"state_bytes": {GIB}', '"state_bytes": -1'), "greater than or equal to 0"),
        (lambda text: text.replace(f'"state_bytes": {GIB}', '"state_bytes": "1 GiB"'), "was damaged"),
        (lambda text: text.replace(f'"state_bytes": {GIB}', '"state_bytes": NaN'), "NaN is not a figure"),
        (lambda text: text.replace("state_bytes", "stat_bytes"), "unknown figure 'stat_bytes' in pretrain/adam; did"),
        (lambda text: text.replace('"source"', '"sauce"'), "was damaged: entries.pretrain.adam"),
    ],
)
def test_a_damaged_baseline_is_refused_with_the_way_out(tmp_path: Path, damage, sentence: str) -> None:  # type: ignore[no-untyped-def]
    path = saved(tmp_path, make_figures("adam"))
    path.write_text(damage(path.read_text()))
    with pytest.raises(UsageError) as error:
        load_baseline(path)
    assert sentence in str(error.value)


def test_only_what_moved_is_rewritten() -> None:
    still, moved = make_figures("sm3"), make_figures("adam")
    before = baseline_of(still, moved)
    after, changes = update(before, [still, with_values(moved, state_bytes=2 * GIB)], ["pretrain"], complete=True)
    assert [(c.optimizer, c.metric, c.old, c.new) for c in changes] == [("adam", "state_bytes", GIB, 2 * GIB)]
    assert after.record("pretrain", "sm3") is before.record("pretrain", "sm3")
    assert update(after, [still, with_values(moved, state_bytes=2 * GIB)], ["pretrain"], complete=True) == (after, [])


def test_noise_is_no_movement() -> None:
    base = make_figures(source="measured", device="cpu")
    near = with_values(base, peak_allocated_bytes=10 * GIB + 100 * MIB)
    assert update(baseline_of(base), [near], ["pretrain"], complete=True)[1] == []
    far = with_values(base, peak_allocated_bytes=10 * GIB + 300 * MIB)
    assert len(update(baseline_of(base), [far], ["pretrain"], complete=True)[1]) == 1
    predicted = with_values(make_figures(), peak_allocated_bytes=10 * GIB + 1)
    assert len(update(baseline_of(make_figures()), [predicted], ["pretrain"], complete=True)[1]) == 1


def test_another_setup_or_environment_is_a_change_even_at_the_same_figures() -> None:
    base = make_figures(source="measured", device="cpu")
    upgraded = base.model_copy(update={"fingerprint": Fingerprint(torch="2.14.0")})
    after, changes = update(baseline_of(base), [upgraded], ["pretrain"], complete=True)
    assert [change.remark for change in changes] == ["torch 2.13.0 is now 2.14.0"]
    assert after.record("pretrain", "adam") == upgraded.record()
    other = make_figures(setup=make_setup(batch_size=16))
    assert update(baseline_of(make_figures()), [other], ["pretrain"], complete=True)[1][0].remark == (
        "batch_size 8 is now 16"
    )
    # The version alone changes nothing of what is predicted.
    newer = make_figures(fingerprint=Fingerprint(torch="2.14.0"))
    assert update(baseline_of(make_figures()), [newer], ["pretrain"], complete=True)[1] == []


def test_what_failed_is_not_accepted_and_what_is_gone_is_removed() -> None:
    before = baseline_of(make_figures("sm3"), make_figures("adam"), make_figures(entry="renamed"))
    dead = make_figures("adam", status="failed", values={})
    large = make_figures("sgd", status="oom")
    after, changes = update(before, [dead, large], ["pretrain"], complete=True)
    assert after.entries == baseline_of(make_figures("adam")).entries
    assert {(c.entry, c.optimizer, c.what) for c in changes} == {
        ("pretrain", "sm3", "removed"),
        ("renamed", "adam", "removed"),
    }
    partly, changes = update(before, [make_figures("adam")], ["pretrain", "renamed"], complete=False)
    assert (partly, changes) == (before, [])


def test_entries_at_level_off_keep_what_was_accepted() -> None:
    before = baseline_of(make_figures(), make_figures(entry="resting"))
    after, changes = update(before, [make_figures()], ["pretrain", "resting"], complete=True)
    assert (after, changes) == (before, [])


def test_figures_of_a_comparison_are_flat() -> None:
    comparison = make_comparison(make_run("adam", 8 * MIB, batch=None), make_broken_run("sgd", "oom", "too large"))
    adam, sgd = figures_of("x", comparison)
    assert adam.values["state_bytes"] == 8 * MIB
    assert adam.unlimited == ["max_batch_size"]
    assert "peak_reserved_bytes" not in adam.values  # null on a CPU, and no 0
    assert adam.fingerprint == Fingerprint(torch="2.13.0+cpu")
    assert adam.holders["activations"] == {"": 200 * MIB}  # an older document: no cross table
    assert (sgd.status, sgd.values) == ("oom", {})


def test_of_several_repeats_resident_memory_takes_the_least_and_the_peak_the_most() -> None:
    runs = [
        make_figures(values={"peak_allocated_bytes": peak, "process_bytes": process, "state_bytes": 7})
        for peak, process in ((10, 30), (12, 20), (11, 40))
    ]
    best = best_of(runs)
    assert best.values == {"peak_allocated_bytes": 12, "process_bytes": 20, "state_bytes": 7}
    assert best.notes == [
        "allocated peak differs between 3 repeats, 10 B to 12 B: the most counts.",
        "process memory differs between 3 repeats, 20 B to 40 B: the least counts.",
    ]
    dead = make_figures(status="failed")
    assert best_of([*runs, dead]) is dead
