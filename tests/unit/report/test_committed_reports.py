"""The committed reports: what their JSON makes, listed with their commands, and what the command makes today."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from memprof.api import compare
from memprof.documents.comparison import Comparison, Run
from memprof.report.write import write_report
from memprof.reproduce.published import find_published
from memprof.workers.launcher import Launcher

REPORTS = Path(__file__).parents[3] / "reports"
SAVED = [one.path for one in find_published(REPORTS) if isinstance(one.document, Comparison)]


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_a_report_is_what_its_json_makes(path: Path, tmp_path: Path) -> None:
    (tmp_path / path.name).write_bytes(path.read_bytes())
    for made in write_report(Comparison.load(path), tmp_path / f"{path.stem}.md", tmp_path / path.name):
        assert made.read_bytes() == (REPORTS / made.name).read_bytes(), (
            f"{made.name} is old: memprof report reports/{path.name} -o reports/{path.stem}.md --force"
        )


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_a_report_names_the_command_that_made_it(path: Path) -> None:
    comparison = Comparison.load(path)
    command = comparison.environment.command
    assert command is not None
    assert command.startswith("memprof compare ")
    assert f"--export-json reports/{path.name} --export-markdown reports/{path.stem}.md" in command
    assert f"| `{command}` |" in (REPORTS / "README.md").read_text(encoding="utf-8")
    finished = [run for run in comparison.runs if "does not take FSDP's shards" not in (run.reason or "")]
    assert finished
    assert all(run.status == "ok" and run.timeline is not None for run in finished)


def test_the_list_has_every_report_and_no_link_leads_nowhere() -> None:
    text = (REPORTS / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert {f"{path.stem}.md" for path in SAVED} <= set(linked)
    for report in REPORTS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", report.read_text(encoding="utf-8")):
            assert (report.parent / link).exists(), f"{report.name}: {link}"
    drawn = {name for path in SAVED for name in re.findall(r"\]\((\S+?\.svg)\)", path.with_suffix(".md").read_text())}
    assert {path.name for path in REPORTS.glob("*_*_*.svg")} == drawn


def test_the_four_workloads_are_there() -> None:
    assert {"gpt2", "resnet50", "bert-large", "transformer-big"} <= {Comparison.load(p).workload.name for p in SAVED}


def figures(run: Run) -> dict[str, Any]:
    """The point estimates of a predicted run: no sentences, no bounds (which have tests of their own), no fit."""
    found = run.model_dump(exclude={"fit", "confidence", "notes", "optimizer"})
    for peak in (found["peak"], *found["phases"].values()):
        for name in [name for name in peak if "_upper_" in name]:
            del peak[name]
    return {"implementation": run.optimizer.implementation, **found}


@pytest.mark.parametrize("name", ["gpt2_rtx-4090"])
def test_predicted_reports_come_out_the_same_today(name: str, launcher: Launcher) -> None:
    saved = Comparison.load(REPORTS / f"{name}.json")
    command = shlex.split(saved.environment.command or "")
    assert command[:3] == ["memprof", "compare", saved.workload.model]
    made = compare(
        saved.workload.model,
        batch_size=saved.workload.batch_size,
        knobs=saved.workload.knobs,
        recipe=saved.recipe,
        optimizers=[run.optimizer.spec for run in saved.runs],
        device=saved.runs[0].device,
        fit=False,
        launcher=launcher,
    )
    again = [run for run in made.runs if run.status == "ok"]
    assert [figures(run) for run in again] == [figures(run) for run in saved.runs], (
        f"predictions have changed: memprof reproduce {name} --write"
    )
