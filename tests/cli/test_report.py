from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from memprof.documents.comparison import Comparison
from memprof.report.write import report_paths
from tests import children
from tests.cli.conftest import ROOT, Command
from tests.comparisons import make_broken_run, make_comparison, make_run
from tests.unit.report.test_figures import make_fit, make_timeline

SAVED = ROOT / "tests" / "data" / "comparisons" / "gpt2.json"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small saved comparison with everything in it."""
    path = tmp_path / "in.json"
    runs = [make_run("adam", 2**30, timeline=make_timeline(2**31, 3 * 2**30)), make_broken_run("sgd", "oom", "full")]
    make_comparison(*runs).save(path)
    return path


def test_a_report_comes_with_its_figures_and_a_link_to_its_json(memprof: Command, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    done = memprof("report", str(saved), "-o", "reports/a.md")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "wrote reports/a.md, reports/a_peak.svg, reports/a_timeline.svg, reports/a_batch.svg\n"
    text = (tmp_path / "reports" / "a.md").read_text()
    assert "[../in.json](../in.json)" in text
    assert re.findall(r"\]\((\w+\.svg)\)", text) == ["a_peak.svg", "a_timeline.svg", "a_batch.svg"]
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == sorted(
        path.name for path in report_paths(Path("a.md"))
    )


def test_twice_gives_the_same_bytes(memprof: Command, saved: Path, tmp_path: Path) -> None:
    for form in ("md", "html"):
        assert memprof("report", str(saved), "-o", f"a.{form}").returncode == 0
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert memprof("report", str(saved), "-o", f"a.{form}", "--force").returncode == 0
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_compare_and_report_write_the_same_report(fake_compare: Command, memprof: Command, tmp_path: Path) -> None:
    assert fake_compare("ok ok", "--export-json", "a.json", "--export-markdown", "a.md").returncode == 0
    (tmp_path / "b").mkdir()
    assert memprof("report", "a.json", "-o", "b/a.md").returncode == 0
    first, second = (tmp_path / "a.md").read_text(), (tmp_path / "b" / "a.md").read_text()
    assert first == second.replace("../a.json", "a.json")


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("text", "gpt2 · batch size 2"),
        ("markdown", "# Training memory of gpt2\n"),
        ("html", "<!doctype html>\n"),
        ("csv", "model,batch_size,"),
        ("summary", "<!-- memprof report -->\n"),
        ("comment", "<!-- memprof report -->\n"),
    ],
)
def test_formats_on_stdout(memprof: Command, saved: Path, form: str, start: str) -> None:
    done = memprof("report", str(saved), "--format", form)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(start)
    assert "sgd" in done.stdout
    assert "\x1b" not in done.stdout
    assert "](" not in done.stdout or form == "html"


def test_no_format_is_what_compare_prints(memprof: Command, saved: Path) -> None:
    assert memprof("report", str(saved)).stdout == memprof("report", str(saved), "--format", "text").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.json"], "cannot read none.json: No such file or directory"),
        (["cut.json"], "cut.json:1: not JSON"),
        (["newer.json"], "newer.json has schema 'memprof.comparison/2', this version reads 'memprof.comparison/1'"),
        (["in.json", "-o", "in.json", "--format", "text"], "would overwrite in.json"),
        (["in.json", "-o", "old.md"], "old.md exists; --force overwrites it"),
        (["in.json", "-o", "fig.md"], "fig_peak.svg exists; --force overwrites it"),
        (["in.json", "-o", "no/where.md"], "choose a folder that exists"),
        (["in.json", "-o", "a.docx"], "the suffix of a.docx names no format; use one of .md, .markdown, .html"),
        (["in.json", "--format", "parquet"], "Parquet is no text; give -o FILE.parquet"),
        (["in.json", "--format", "pdf"], "pdf"),
    ],
)
def test_mistakes_are_one_sentence(
    memprof: Command, saved: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "cut.json").write_text(saved.read_text()[:30].replace("\n", " "))
    newer = json.loads(saved.read_text()) | {"schema": "memprof.comparison/2"}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    (tmp_path / "old.md").write_text("precious")
    (tmp_path / "fig_peak.svg").write_text("precious")
    done = memprof("report", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "old.md").read_text() == "precious"
    assert (tmp_path / "fig_peak.svg").read_text() == "precious"


def test_a_document_from_before_timelines_is_read(memprof: Command, tmp_path: Path) -> None:
    document = json.loads(SAVED.read_text())
    assert not any("timeline" in run for run in document["runs"])
    done = memprof("report", str(SAVED), "-o", "a.md")
    assert done.returncode == 0
    assert "a_timeline.svg" not in (tmp_path / "a.md").read_text()


def test_parquet_reads_back_or_says_what_is_missing(memprof: Command, saved: Path, tmp_path: Path) -> None:
    done = memprof("report", str(saved), "-o", "a.parquet")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        assert done.returncode == 2
        assert "pip install pyarrow" in done.stderr
    else:
        import pandas as pd

        frame = pd.read_parquet(tmp_path / "a.parquet")
        assert frame["optimizer"].tolist() == [run.optimizer.spec for run in Comparison.load(saved).runs]


def test_a_fit_becomes_a_report_with_its_matrix(memprof: Command, tmp_path: Path) -> None:
    make_fit(("sm3", "rtx-4090", 20), ("adam", "rtx-4090", 0)).save(tmp_path / "fit.json")
    done = memprof("report", "fit.json", "-o", "fit.md")
    assert (done.returncode, done.stderr) == (0, "wrote fit.md, fit_matrix.svg\n")
    text = (tmp_path / "fit.md").read_text()
    assert "](fit_matrix.svg)" in text
    assert text.endswith("Every number: [fit.json](fit.json)\n")
    assert memprof("report", "fit.json").stdout.startswith("largest batch_size of gpt2")
    assert memprof("report", "fit.json", "--format", "csv").stdout.startswith("model,")
    page = memprof("report", "fit.json", "--format", "html")
    assert page.returncode == 2
    assert "fit.json can be made into text, markdown, csv, parquet; html is for others" in page.stderr


def test_rendering_does_not_import_torch(saved: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from memprof.report.render.github import to_comment
from memprof.report.write import write_report
from memprof.report.render.html import to_page
from memprof.documents.comparison import Comparison
comparison = Comparison.load({str(saved)!r})
to_page(comparison), to_comment(comparison), write_report(comparison, Path({str(tmp_path / "x.md")!r}), None)
import memprof.report.content.fit, memprof.cli.report
assert "torch" not in sys.modules and "pandas" not in sys.modules
"""
    children.run([sys.executable, "-c", code], cwd=ROOT)


def test_traces_are_exported_for_other_tools(memprof: Command, tmp_path: Path) -> None:
    arguments = [
        "compare",
        "mlp",
        "-b",
        "2",
        "--no-fit",
        "-o",
        "sgd",
        "-o",
        "sm3,momentum=0.9",
        "--export-trace",
        "traces",
    ]
    assert memprof(*arguments, "--device", "24GiB").returncode == 0
    names = ["sgd", "sm3_momentum=0.9"]
    expected = sorted(f"{name}.{form}" for name in names for form in ("pickle", "perfetto.json"))
    assert sorted(path.name for path in (tmp_path / "traces").iterdir()) == expected
    again = memprof(*arguments, "--device", "24GiB")
    assert again.returncode == 2
    assert again.stderr == "error: traces/sgd.pickle exists; --force overwrites it\n"
    measured = memprof(*arguments, "--device", "cpu", "--force")
    assert measured.returncode == 0, measured.stderr
    events = json.loads((tmp_path / "traces" / "sgd.perfetto.json").read_text())["traceEvents"]
    assert {"forward", "backward"} <= {event["name"] for event in events}


def test_advice_becomes_a_report(memprof: Command, tmp_path: Path) -> None:
    setup = ["advise", "mlp", "-b", "64", "-o", "adam", "--device", "24GiB", "--export-json", "advice.json"]
    assert memprof(*setup).returncode == 0
    done = memprof("report", "advice.json", "-o", "advice.md")
    assert (done.returncode, done.stderr) == (0, "wrote advice.md\n")
    assert (tmp_path / "advice.md").read_text().startswith("# What makes mlp fit 24GiB\n")
    assert "mlp" in memprof("report", "advice.json").stdout
    assert "text, markdown; csv is for others" in memprof("report", "advice.json", "--format", "csv").stderr
