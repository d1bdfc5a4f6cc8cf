from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import xmlschema
from rich.console import Console

from memprof.errors import UsageError
from memprof.gate.formats import FORMATS
from memprof.gate.formats.markdown import MARKER
from memprof.gate.formats.table import render
from memprof.gate.measure import broken_figures
from memprof.gate.metrics import METRICS
from memprof.gate.report import Report
from memprof.gate.wording import share
from memprof.report.render.github import COMMENT_BYTES
from tests.gates import GIB, MIB, budget_of, make_figures, report_of, with_values

XSD = xmlschema.XMLSchema(Path(__file__).parents[2] / "data" / "gate" / "junit.xsd")
# actions/toolkit, docs/commands.md: ::command parameter1={data},parameter2={data}::{command value}
ANNOTATION = re.compile(r"::(error|warning|notice) (?:[a-z]+=[^:,\r\n]*)(?:,[a-z]+=[^:,\r\n]*)*::[^\r\n]+")
POINTS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "unit", "value"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "unit": {"type": "string"},
            "value": {"type": "number"},
            "range": {"type": "string"},
            "extra": {"type": "string"},
        },
    },
}
NASTY = "100% <b>::error::</b>, [red]&|`\n::set-env name=X::y\x07"
LIMITS = ('peak_allocated_bytes = ["12 GiB", "+2%"]', 'state_bytes = "+0%"', "max_batch_size = 4")


def make_report(count: int = 1) -> Report:
    """A report with every status, and texts that mean something in every format."""
    budgets = [budget_of(*LIMITS, f"message = {json.dumps(NASTY)}", name=f"e{index}") for index in range(count)]
    figures, accepted = [], []
    for budget in budgets:
        base = with_values(make_figures("adam", budget.name), max_batch_size=4)
        accepted.append(base)
        grown = with_values(base, peak_allocated_bytes=13 * GIB, state_bytes=GIB - 1)
        figures.append(grown)
        figures.append(make_figures("sm3", budget.name, status="failed", values={}, reason=NASTY))
    report = report_of(budgets, figures, accepted)
    why = [verdict.model_copy(update={"why": ["activations +3.00 GiB in a_b.*.mlp"]}) for verdict in report.verdicts]
    return report.model_copy(update={"verdicts": why})


REPORT = make_report()


def shown(report: Report, width: int = 120) -> str:
    console = Console(file=StringIO(), width=width, highlight=False, markup=False, emoji=False)
    render(report, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_report_has_everything_that_can_happen() -> None:
    assert {verdict.status for verdict in REPORT.verdicts} == {"exceeded", "improved", "passed", "failed"}
    assert REPORT.exit_code == 3


@pytest.mark.parametrize("report", [REPORT, make_report(40), report_of([], [])], ids=["small", "large", "empty"])
def test_every_format_keeps_to_its_schema(report: Report, tmp_path: Path) -> None:
    jsonschema.validate(json.loads(report.to_json()), Report.model_json_schema(by_alias=True))
    (tmp_path / "report.json").write_text(report.to_json())
    assert Report.load(tmp_path / "report.json") == report
    XSD.validate(FORMATS["junit"](report))
    assert all(ANNOTATION.fullmatch(line) for line in FORMATS["github"](report).splitlines())
    jsonschema.validate(json.loads(FORMATS["gha-benchmark"](report)), POINTS)
    assert FORMATS["markdown"](report).startswith(MARKER)
    assert len(FORMATS["markdown"](report).encode()) <= COMMENT_BYTES


def test_junit_counts_what_it_holds() -> None:
    root = ElementTree.fromstring(FORMATS["junit"](REPORT))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("5", "2", "1")
    assert len(root.findall(".//testcase")) == 5
    assert [element.get("type") for element in root.findall(".//failure")] == ["exceeded", "exceeded"]
    assert "why: activations +3.00 GiB in a_b.*.mlp" in (root.findall(".//failure")[0].text or "")
    assert root.findall(".//system-out")[0].text is not None


def test_annotations_name_file_line_and_cause_and_stop_at_ten() -> None:
    lines = FORMATS["github"](REPORT).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error", "::error", "::warning"]
    assert "file=memprof.toml,line=5,title=memprof%3A exceeded%3A e0/adam" in lines[1]
    assert "%0Awhy: activations +3.00 GiB in a_b.*.mlp" in lines[1]
    many = FORMATS["github"](make_report(40)).splitlines()
    errors = [line for line in many if line.startswith("::error")]
    assert len(errors) == 10
    assert errors[-1] == "::error title=memprof gate::111 more; see the log"
    assert len([line for line in many if line.startswith("::warning")]) == 10


def test_markdown_shows_causes_and_how_to_accept_and_escapes_what_users_wrote() -> None:
    text = FORMATS["markdown"](REPORT)
    assert text.splitlines()[:2] == [MARKER, "## ❌ The memory budget is exceeded"]
    assert "  - why: activations +3.00 GiB in a_b.\\*.mlp" in text
    assert "```sh\nmemprof gate --update-baseline\n```" in text
    assert "<b>" not in text
    assert "| e0 | adam | peak_allocated_bytes | 13.00 GiB | 12.00 GiB |" in text


@pytest.mark.parametrize("count", [1, 5, 40, 400])
def test_markdown_climbs_down_until_it_is_short_enough(count: int) -> None:
    report = make_report(count)
    text = FORMATS["markdown"](report)
    assert len(text.encode()) <= COMMENT_BYTES
    assert text.startswith(MARKER)
    rows = text.count("\n| ")
    assert (f"{5 * count - (rows - 2)} more checks are not shown" in text) is (rows - 2 < 5 * count)
    assert rows > 2
    assert ("- why:" in text) is (count < 400)


def test_markdown_of_a_passing_gate_is_short_and_says_so() -> None:
    text = FORMATS["markdown"](report_of([budget_of("optimizers = ['adam']")], [make_figures()]))
    assert "✅ The memory budget holds" in text
    assert "update-baseline" not in text


def test_benchmark_points_are_bytes_of_finished_runs() -> None:
    points = json.loads(FORMATS["gha-benchmark"](REPORT))
    assert {point["name"] for point in points} == {
        "e0/adam state_bytes",
        "e0/adam peak_allocated_bytes",
        "e0/adam peak_reserved_bytes",
    }
    assert points[1] == {
        "name": "e0/adam peak_allocated_bytes",
        "unit": "bytes",
        "value": 13 * GIB,
        "extra": "predicted, rtx-4090, torch 2.13.0",
    }


def test_the_table_ends_with_the_command_that_accepts() -> None:
    text = shown(REPORT)
    assert text.rstrip().endswith("To accept these figures as the baseline:\n  memprof gate --update-baseline")
    assert "x e0/adam: peak_allocated_bytes is 13.00 GiB, 1.00 GiB over the limit of 12.00 GiB" in text
    assert "5 checks: 3 failed, 1 warned, 1 passed" in text
    assert text.count("activations +3.00 GiB") == 3  # once for the peak's two limits, for the state and for the run
    assert "To raise a ceiling, edit memprof.toml:5." in text
    passing = shown(report_of([budget_of("optimizers = ['adam']")], [make_figures()]))
    assert passing.rstrip().endswith("1 check: 1 passed")


def test_a_change_in_short() -> None:
    size, count = METRICS["state_bytes"], METRICS["max_batch_size"]
    assert share(size, GIB, 2 * GIB) == "+100.0 %"
    assert share(size, GIB, GIB - 12) == "-12 B"
    assert share(count, 10_000, 9_999) == "-1"
    assert (share(size, 0, 8), share(size, 8, 8), share(size, None, 8), share(None, 1, 2)) == ("from 0", "=", "-", "-")


def test_figures_are_measured_on_a_device_and_predicted_for_one() -> None:
    here = report_of([budget_of("optimizers = ['adam']")], [make_figures(source="measured", device="cpu")])
    assert "measured on cpu · baseline" in shown(here)
    assert "Measured on cpu." in FORMATS["markdown"](here)
    assert "predicted for rtx-4090 · baseline" in shown(REPORT)
    assert broken_figures(budget_of(), "adam", UsageError("no such knob")).source == "predicted"


def test_no_other_baseline_is_offered_where_only_a_ceiling_is_exceeded() -> None:
    made = make_figures()
    report = report_of([budget_of('peak_allocated_bytes = ["1 GiB", "+2%"]', "optimizers = ['adam']")], [made], [made])
    assert len(report.failures) == 1
    assert shown(report).rstrip().endswith("To raise a ceiling, edit memprof.toml:5.")
    assert "--update-baseline" not in FORMATS["markdown"](report)


def test_the_table_stays_within_80_columns() -> None:
    lines = shown(REPORT, width=80).splitlines()
    assert max(len(line.rstrip()) for line in lines if "memprof gate" not in line) <= 80
    assert any("13.00 GiB" in line for line in lines)


def test_an_update_says_what_changed() -> None:
    changed = REPORT.model_copy(update={"updated": True, "exit_code": 0})
    assert "memprof-baseline.json: nothing moved" in shown(changed)
    assert "The baseline stands." in FORMATS["markdown"](changed)
    assert "--update-baseline" not in FORMATS["markdown"](changed)
    assert MIB == 2**20
