"""A script that is measured, and predicted beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

import memprof
from memprof.documents.comparison import Comparison, Run
from memprof.workers.launcher import Launcher

SCRIPTS = Path(__file__).parents[1] / "data" / "scripts"


def run(launcher: Launcher, name: str, *arguments: str, **options: object) -> Comparison:
    return memprof.run(SCRIPTS / name, arguments, device="cpu", launcher=launcher, **options)


def errors(found: Run) -> dict[tuple[str | None, str], int]:
    assert found.validation is not None
    assert found.validation.reason is None
    return {
        (one.phase, one.layer): one.error_bytes
        for one in found.validation.deviations
        if one.layer != "process" and one.category is None
    }


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("plain.py", {"build", "forward", "backward", "clip", "optimizer", "zero_grad", "other"}),
        ("gan.py", {"build", "forward", "backward", "optimizer", "zero_grad", "other"}),
        (
            "evaluates.py",
            {"build", "forward", "backward", "optimizer", "zero_grad", "evaluation", "save", "load", "other"},
        ),
    ],
)
@pytest.mark.parametrize("optimizer", ["as-is", "sm3"])
def test_predicted_and_measured_agree_in_every_phase(
    launcher: Launcher, tmp_path: Path, name: str, phases: set[str], optimizer: str
) -> None:
    arguments = [str(tmp_path)] if name == "evaluates.py" else []
    (found,) = run(launcher, name, *arguments, optimizers=[optimizer], validate=True).runs
    assert found.status == "ok"
    assert set(found.phases) == phases
    off = errors(found)
    assert {phase for phase, layer in off if layer == "allocated"} == {None, *phases}
    assert all(abs(error) <= 16 for error in off.values()), off


def test_a_script_of_a_workload_has_the_figures_of_compare(launcher: Launcher) -> None:
    (script,) = run(launcher, "builtin_mlp.py", steps=4).runs
    (workload,) = memprof.compare("mlp", optimizers=["adam"], device="cpu", fit=False, launcher=launcher).runs
    assert script.parameters == workload.parameters
    assert script.state == workload.state
    assert script.peak.allocated_bytes == workload.peak.allocated_bytes
    assert script.peak.tensor_bytes == workload.peak.tensor_bytes
    for phase in ("forward", "backward", "optimizer", "zero_grad"):
        assert script.phases[phase] == workload.phases[phase], phase
    assert script.breakdown.by_module == workload.breakdown.by_module
    ours, theirs = script.breakdown.by_category, workload.breakdown.by_category
    labels = 8 * 8  # nobody says that these are part of the batch
    assert ours == {**theirs, "inputs": theirs["inputs"] - labels, "temporaries": theirs["temporaries"] + labels}
    assert script.optimizer.implementation == workload.optimizer.implementation


def test_evaluation_may_set_the_peak_and_the_summary_says_so(launcher: Launcher, tmp_path: Path) -> None:
    found = run(launcher, "evaluates.py", str(tmp_path))
    assert found.runs[0].peak.phase == "evaluation"
    assert "set by evaluation" in found.to_markdown()


def test_state_is_that_of_all_optimizers(launcher: Launcher) -> None:
    made = run(launcher, "gan.py", optimizers=["as-is", "adam", "sgd", "sgd@0", "sgd@adam_maker"])
    own, adam, sgd, first, second = (one.state.bytes for one in made.runs)
    parameters = made.runs[0].parameters.bytes
    assert parameters == 4 * (8 * 64 + 64 + 64 * 16 + 16 + 16 * 128 + 128 + 128 + 1)
    maker = 4 * (8 * 64 + 64 + 64 * 16 + 16)
    assert own == adam == 2 * parameters + 8 * 4  # a step counter of 4 bytes for each of 8 parameters
    assert sgd == 0
    assert first == 2 * maker + 4 * 4
    assert second == own - first
    assert made.reference == "as-is"


def test_nothing_is_left_behind(launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    output = tmp_path / "printed.txt"
    run(launcher, "evaluates.py", str(folder), steps=3, script_output=output)
    assert list(folder.iterdir()) == []
    text = output.read_text(encoding="utf-8")
    assert text.endswith("finally\nthe end\n")
    run(launcher, "evaluates.py", str(folder), steps=3, keep_outputs=True)
    assert [path.name for path in folder.iterdir()] == ["best.pt"]


def test_the_document_is_read_and_rendered_as_any_other(launcher: Launcher, tmp_path: Path) -> None:
    made = run(launcher, "plain.py", "48", optimizers=["as-is", "sm3"], steps=2)
    made.save(tmp_path / "run.json")
    read = Comparison.load(tmp_path / "run.json")
    assert read == made
    assert read.workload is None
    assert read.recipe is None
    assert read.script.arguments == ("48",)
    frame = read.to_frame()
    assert frame["model"].tolist() == [f"{SCRIPTS / 'plain.py'} 48"] * 2
    assert "plain.py" in read.to_markdown()
    assert "plain.py" in read._repr_html_()
