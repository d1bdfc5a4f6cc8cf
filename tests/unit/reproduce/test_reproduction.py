"""Whether a saved result came out again, and how its command is found and run: documents built by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memprof.documents.comparison import Comparison, Fit, Run
from memprof.errors import UsageError
from memprof.reproduce.agreement import agreement
from memprof.reproduce.published import Published, choose, command_folder, find_published, replace
from tests.comparisons import COUNT, GIB, make_answer, make_comparison, make_environment, make_run
from tests.unit.search.test_fit_report import answer, make_report

MEASURED = make_run("adam", 8 * COUNT)
PREDICTED = make_run("adam", 8 * COUNT, source="predicted", device="rtx-4090")


def with_peak(run: Run, **factors: float) -> Run:
    assert run.peak is not None
    sizes = {name: int(getattr(run.peak, name) * factor) for name, factor in factors.items()}
    return run.model_copy(update={"peak": run.peak.model_copy(update=sizes)})


def differences(old: Run, new: Run, **changes: Any) -> list[str]:
    return agreement(make_comparison(old), make_comparison(new, **changes)).differences


def test_the_same_comes_out_again_and_every_figure_counts() -> None:
    found = agreement(make_comparison(MEASURED, PREDICTED), make_comparison(MEASURED, PREDICTED))
    assert (found.differences, found.remarks) == ([], [])
    assert found.compared > 30


def test_what_was_measured_may_move_by_its_noise() -> None:
    assert differences(MEASURED, with_peak(MEASURED, allocated_bytes=1.019, process_bytes=0.91)) == []
    (peak,) = differences(MEASURED, with_peak(MEASURED, allocated_bytes=1.03))
    assert peak.startswith("adam: peak_allocated_bytes was ")
    assert peak.endswith(", beyond 2 %")
    assert MEASURED.state is not None
    grown = MEASURED.model_copy(update={"state": MEASURED.state.model_copy(update={"bytes": 8 * COUNT + 1})})
    assert differences(MEASURED, grown) == [f"adam: state_bytes was {8 * COUNT} and is {8 * COUNT + 1}"]
    slow = MEASURED.model_copy(update={"steps": None})
    assert differences(MEASURED, slow) == []


def test_what_was_predicted_may_not_move_anywhere() -> None:
    assert PREDICTED.breakdown is not None
    held = {**PREDICTED.breakdown.by_category, "inputs": 4097}
    moved = PREDICTED.model_copy(update={"breakdown": PREDICTED.breakdown.model_copy(update={"by_category": held})})
    assert differences(PREDICTED, moved) == ["adam: breakdown.by_category.inputs was 4096 and is 4097"]
    assert differences(PREDICTED, PREDICTED.model_copy(update={"notes": ["said otherwise"]})) == []


def test_a_run_that_failed_or_is_not_there_is_a_difference() -> None:
    assert differences(MEASURED, make_run("sgd", 0)) == ["adam: it was not run"]
    failed = Run(optimizer=MEASURED.optimizer, device="cpu", status="failed", reason="x")
    assert "adam: status was ok and is failed" in differences(MEASURED, failed)
    assert agreement(make_comparison(), make_report({})).differences == ["the command made another kind of document"]


def test_another_machine_is_remarked_and_fills_another_memory() -> None:
    smaller = MEASURED.model_copy(update={"fit": Fit(batch_size=make_answer("batch_size", 3))})
    assert differences(MEASURED, smaller) == [
        "adam: max_batch_size was 52 and is 3, beyond 2 %",
        "adam: max_scale was 48 and is None, beyond 2 %",
    ]
    elsewhere = make_comparison(
        smaller, capacity={"bytes": GIB, "source": "device"}, environment=make_environment(cores=8)
    )
    found = agreement(make_comparison(MEASURED), elsewhere)
    assert found.differences == []
    assert found.remarks == [
        "cores was 2 and is 8",
        "the capacity is 1.00 GiB instead of 24.00 GiB: the largest batch and model are not compared",
    ]


def test_cells_of_a_fit() -> None:
    old = make_report({("sm3", "t4"): answer(4), ("adam", "t4"): answer(2)})
    assert agreement(old, old).differences == []
    new = make_report({("sm3", "t4"): answer(5)})
    assert agreement(old, new).differences == [
        "sm3 on t4: answer.value was 4 and is 5",
        "sm3 on t4: answer.next_value was 5 and is 6",
        "adam on t4: it was not searched for",
    ]
    here = [device.model_copy(update={"simulated": False}) for device in old.devices]
    measured, larger = (make_report({("sm3", "t4"): answer(value)}, devices=here) for value in (100, 103))
    assert agreement(measured, measured).differences == []
    assert agreement(measured, larger).differences == ["sm3 on t4: largest batch_size was 100 and is 103, beyond 2 %"]


def published(command: str | None, path: str = "reports/x.json") -> Published:
    return Published(Path(path), make_comparison(environment=make_environment(command=command)))


@pytest.mark.parametrize("command", [None, "", "rm -rf x", "memprof", "memprof gate", "python -m memprof compare x"])
def test_only_commands_that_make_a_result_are_run(command: str | None) -> None:
    with pytest.raises(UsageError, match=r"reports/x\.json names no command that can be run again"):
        _ = published(command).arguments


def test_arguments_without_outputs() -> None:
    command = "memprof fit 'a b.py:M' --export-json x.json -b 2 --export-markdown=m.md --json --force --export-trace t"
    assert published(command).arguments == ["fit", "a b.py:M", "-b", "2"]


def test_a_command_runs_where_it_was_given(tmp_path: Path) -> None:
    inside = str(tmp_path / "reports" / "x.json")
    assert command_folder(published("memprof fit gpt2 --export-json reports/x.json", inside)) == tmp_path
    assert command_folder(published("memprof fit gpt2 --export-json x.json", inside)) == tmp_path / "reports"
    assert command_folder(published("memprof fit gpt2 --export-json y.json", inside)) == Path.cwd()


def test_results_are_found_and_replaced_with_their_command(tmp_path: Path) -> None:
    make_comparison().save(tmp_path / "one.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (found,) = find_published(tmp_path)
    assert (found.name, found.origin) == ("one", "measured on cpu")
    with pytest.raises(UsageError, match=r"there is no result 'ones' in .*; did you mean 'one'\?"):
        choose("ones", tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        find_published(tmp_path / "none")
    (tmp_path / "one.md").write_text("old")
    made = make_comparison(PREDICTED, environment=make_environment(command="another"))
    assert tmp_path / "one.md" in replace(found, made)
    again = Comparison.load(tmp_path / "one.json")
    assert again.environment.command == found.command
    assert [run.source for run in again.runs] == ["predicted"]
    assert "adam" in (tmp_path / "one.md").read_text()
