"""`memprof reproduce` with a small prediction, through its life."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from memprof.reproduce import published
from tests.cli.conftest import Command
from tests.comparisons import make_comparison

pytest.importorskip("torch")


def test_a_published_prediction_comes_out_again_or_is_told_and_replaced(memprof: Command, tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    files = ("--export-json", "reports/small.json", "--export-markdown", "reports/small.md")
    assert memprof("compare", "mlp", "-b", "2", "-o", "sgd", "--device", "t4", "--no-fit", *files).returncode == 0
    saved = tmp_path / "reports" / "small.json"
    before, report = json.loads(saved.read_text()), (tmp_path / "reports" / "small.md").read_text()

    wrong = json.loads(saved.read_text())
    wrong["runs"][0]["peak"]["allocated_bytes"] += 512
    saved.write_text(json.dumps(wrong, indent=1))
    peak = before["runs"][0]["peak"]["allocated_bytes"]
    told = memprof("reproduce", "small", "--write")
    assert told.returncode == 1
    assert f"- sgd: peak.allocated_bytes was {peak + 512} and is {peak}" in told.stdout
    assert "small: 1 of " in told.stdout
    after = json.loads(saved.read_text())
    dated = {"date": before["environment"]["date"]}
    assert {**after, "environment": {**after["environment"], **dated}} == before
    assert (tmp_path / "reports" / "small.md").read_text().splitlines()[0] == report.splitlines()[0]


def test_a_result_that_comes_out_again(inside: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reports").mkdir()
    make_comparison().save(tmp_path / "reports" / "gpt2.json")
    listed = inside("reproduce")
    assert listed.returncode == 0
    assert re.search(r"gpt2 +measured on cpu +2\.13\.0\+cpu +compare gpt2 -b 2 --set seq_len=128", listed.stdout)
    monkeypatch.setattr(published, "run_again", lambda found: found.document)
    good = inside("reproduce", "gpt2")
    assert (good.returncode, good.stdout) == (0, "gpt2: all 48 figures were reproduced (measured on cpu)\n")
    said = json.loads(inside("reproduce", "reports/gpt2.json", "--json").stdout)
    assert (said["name"], said["compared"], said["differences"], said["remarks"]) == ("gpt2", 48, [], [])


def test_what_cannot_be_made_again_is_one_sentence(memprof: Command) -> None:
    done = memprof("reproduce")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: there is no folder reports here; name a saved result, or --folder" in done.stderr
    assert memprof("reproduce", "none.json").returncode == 2
