from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import sys
from pathlib import Path

import pytest

from memprof.cli.compare import exit_code
from memprof.documents.comparison import Comparison
from tests import children
from tests.cli.conftest import FAKE, ROOT, Command
from tests.comparisons import make_broken_run, make_comparison


def test_results_go_to_stdout_and_progress_to_stderr(fake_compare: Command) -> None:
    done = fake_compare("ok ok ok")
    assert done.returncode == 0
    assert "Measured: sm3 keeps 1.20 MiB of state where adam keeps 949.40 MiB" in done.stdout
    assert done.stderr.splitlines() == [
        "[1/3] sm3: peak 1.13 GiB, state 1.20 MiB, 900 ms per step",
        "[2/3] sm3,momentum=0.9: peak 1.59 GiB, state 475.90 MiB, 900 ms per step",
        "[3/3] adam: peak 2.05 GiB, state 949.40 MiB, 900 ms per step",
    ]


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ("ok", 0),
        ("ok oom", 0),
        ("ok failed", 3),
        ("oom", 3),
        ("oom oom", 3),
        ("oom failed", 3),
        ("failed", 3),
    ],
)
def test_exit_codes(fake_compare: Command, states: str, code: int) -> None:
    done = fake_compare(states)
    assert done.returncode == code
    assert done.stdout.count("it [broke]") == len(states.split()) - states.split().count("ok")
    assert ("~61" in done.stdout) == ("ok" in states)


def test_an_internal_error_is_one_sentence_and_exit_3(fake_compare: Command) -> None:
    done = fake_compare("ok crash")
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert last == "error: RuntimeError: bad [thing] (a fault of memprof; use --debug for the traceback)"
    assert "Traceback" not in done.stderr
    assert "Traceback" in fake_compare("ok crash", "--debug").stderr


def test_a_mistake_found_in_training_is_exit_2(fake_compare: Command) -> None:
    done = fake_compare("usage")
    assert (done.returncode, done.stderr) == (2, "error: bad [thing]\n")


def test_an_interrupt_keeps_the_finished_rows(fake_compare: Command, tmp_path: Path) -> None:
    done = fake_compare("ok ok interrupt", "--export-json", "out.json", "--export-markdown", "out.md")
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "475.90 MiB" in done.stdout
    assert [run.optimizer.spec for run in Comparison.load(tmp_path / "out.json").runs] == [
        "sm3",
        "sm3,momentum=0.9",
    ]
    assert "475.90 MiB" in (tmp_path / "out.md").read_text()


def test_a_crash_keeps_the_json_of_the_finished_rows(fake_compare: Command, tmp_path: Path) -> None:
    assert fake_compare("ok crash", "--export-json", "out.json").returncode == 3
    assert len(Comparison.load(tmp_path / "out.json").runs) == 1


def test_json_is_all_of_stdout(fake_compare: Command) -> None:
    document = json.loads(fake_compare("ok oom", "--json").stdout)
    assert [run["status"] for run in document["runs"]] == ["ok", "oom"]
    assert document["environment"]["command"] == "memprof compare gpt2 --json"


def test_exports_hold_the_same_comparison(fake_compare: Command, tmp_path: Path) -> None:
    done = fake_compare("ok ok ok", "--export-json", "a.json", "--export-csv", "a.csv", "--export-markdown", "a.md")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "wrote a.json, a.csv, a.md, a_peak.svg, a_batch.svg"
    comparison = Comparison.load(tmp_path / "a.json")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [int(row["state_bytes"]) for row in rows] == [run.state.bytes for run in comparison.runs if run.state]
    shown = [
        line for line in (tmp_path / "a.md").read_text().splitlines() if not line.startswith(("![", "Every number"))
    ]
    assert [line for line in shown if line] == [line for line in comparison.to_markdown().splitlines() if line]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json", "a.md", "a_batch.svg", "a_peak.svg"]


@pytest.mark.parametrize(("flag", "start"), [("json", "{"), ("csv", "model,"), ("markdown", "# Training memory")])
def test_an_export_to_stdout_takes_the_tables_place(fake_compare: Command, flag: str, start: str) -> None:
    done = fake_compare("ok", f"--export-{flag}", "-")
    assert done.stdout.startswith(start)
    assert "Largest batch_size and n_layer within 24.00 GiB, all of the device's memory; ~" not in done.stdout
    assert "wrote" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--export-json", "old.json"], "old.json exists; --force overwrites it"),
        (["--export-csv", "no/where.csv"], "No such file or directory; choose a folder that exists"),
        (["--export-csv", "."], "it is a folder; name a file in it"),
        (["--export-markdown", "."], "it is a folder; name a file in it"),
        (["--export-json", "-", "--json"], "error: --export-json - and --json both write to stdout"),
        (["--export-csv", "-", "--export-markdown", "-"], "both write to stdout; give one of them a file"),
        (["--export-csv", "x", "--export-markdown", "./x"], "error: two exports name the same file"),
    ],
)
def test_exports_are_checked_before_any_training(
    fake_compare: Command, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "old.json").write_text("precious")
    done = fake_compare("crash", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "old.json").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(fake_compare: Command, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    done = fake_compare("crash", "--export-json", "closed/x.json")
    assert done.returncode == 2
    assert "Permission denied" in done.stderr


def test_force_overwrites(fake_compare: Command, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    assert fake_compare("ok", "--export-json", "old.json", "--force").returncode == 0
    assert len(Comparison.load(tmp_path / "old.json").runs) == 1


def test_a_pipe_gets_a_wide_table_and_no_codes(fake_compare: Command) -> None:
    done = fake_compare("ok ok")
    assert "\x1b" not in done.stdout + done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("sm3 ") and "~61" in line)
    assert "~48 (354M)" in row


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_one_line_that_changes_and_its_own_width(tmp_path: Path, no_color: str) -> None:
    shown = _in_terminal(FAKE.format(states=["ok", "ok", "failed"]), tmp_path, no_color)
    assert "[1/3] sm3" in shown
    assert "step 1/3, peak 1.00 GiB" in shown
    assert "per step" not in shown
    colours = re.findall(r"\x1b\[[0-9;]*3[0-7][0-9;]*m", shown)
    assert bool(colours) == (no_color == "")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= 80
    assert "475.90 MiB" in text


def _in_terminal(script: str, folder: Path, no_color: str) -> str:
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
        "COLUMNS": "80",
        "LINES": "40",
    }
    environment.pop("NO_COLOR", None)
    if no_color:
        environment["NO_COLOR"] = no_color
    command = [sys.executable, "-c", script, "gpt2"]
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with children.started(command, cwd=folder, env=environment, **terminal) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux says EIO when the other end is closed
                break
            if not piece:
                break
            shown += piece
        child.wait()
    os.close(ours)
    assert child.returncode == 3
    return shown.decode()


@pytest.mark.parametrize(("sources", "code"), [("predicted predicted", 0), ("predicted measured", 0), ("measured", 3)])
def test_out_of_memory_is_an_answer_where_it_is_predicted(sources: str, code: int) -> None:
    oom = make_broken_run("adam", "oom", "out of memory")
    runs = [oom.model_copy(update={"source": source}) for source in sources.split()]
    assert exit_code(make_comparison(runs=runs)) == code
