"""The report of a fit, from a document built by hand: round figures, nothing measured."""

from __future__ import annotations

import io
import json

import pytest

from memprof.cli.fit import exit_code
from memprof.documents.comparison import FitAnswer, FitPoint, WorkloadInfo
from memprof.documents.fit import Evaluations, FitCell, FitDevice, FitReport
from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary
from memprof.errors import ExitCode, UsageError
from memprof.report.content import fit as fits
from memprof.report.render.terminal import make_console
from tests.comparisons import GIB, make_environment


def answer(value: int, **changes) -> FitAnswer:
    values = {
        "knob": "batch_size",
        "value": value,
        "peak_bytes": 20 * GIB if value else None,
        "next_value": value + 1,
        "next_peak_bytes": 25 * GIB,
        "phase": "backward",
        "method": "predicted",
        "points": [FitPoint(value=value or 1, peak_bytes=20 * GIB)],
    }
    return FitAnswer(**{**values, **changes})


def make_report(cells: dict[tuple[str, str], FitAnswer | str], **changes) -> FitReport:
    names = list(dict.fromkeys(device for _, device in cells))
    devices = [
        FitDevice(name=n, simulated=True, capacity_bytes=24 * GIB, usable_bytes=22 * GIB, source="catalog")
        for n in names
    ]
    filled = [
        FitCell(optimizer=one, device=device, **({"reason": found} if isinstance(found, str) else {"answer": found}))
        for (one, device), found in cells.items()
    ]
    knobs = {"seq_len": 1024, "n_layers": 12}
    values = {
        "environment": make_environment(command="memprof fit gpt2"),
        "workload": WorkloadInfo(model="gpt2", name="gpt2", knobs=knobs, batch_size=8),
        "recipe": Recipe(),
        "vary": Vary(),
        "margin": "2GiB",
        "devices": devices,
        "cells": filled,
        "evaluations": Evaluations(predicted=7),
    }
    return FitReport(**{**values, **changes})


REPORT = make_report(
    {
        ("sm3", "rtx-4090"): answer(19),
        ("adam", "rtx-4090"): answer(0),
        ("sm3", "l4"): answer(512, next_value=None, next_peak_bytes=None, notes=["The end of the range fits."]),
        ("adam", "l4"): "it raised [something]",
    }
)


def test_matrix_has_a_column_for_each_device():
    table = fits.matrix(REPORT)
    assert table.titles == ("optimizer", "rtx-4090", "l4")
    assert table.rows == (("sm3", "19", "512+"), ("adam", "none", "failed"))


def test_details_say_what_binds_and_what_the_next_needs():
    table = fits.details(REPORT)
    assert "parameters" not in table.titles
    first = dict(zip(table.titles, table.rows[0], strict=True))
    assert first["head-room"] == "2.00 GiB"
    assert (first["bound by"], first["next"], first["needs"]) == ("the backward pass", "20", "25.00 GiB")


def test_sentences_name_what_fits_where_others_do_not():
    told = fits.sentences(REPORT)
    assert told[0].startswith("To fill: 22.00 GiB each (a GPU's memory beside the CUDA context, without a margin")
    assert told[1] == "On rtx-4090 not even batch_size=1 fits with adam (25.00 GiB); sm3 would."
    assert "seq_len=1024" in told[2]
    assert told[3] == "Found with 7 values predicted, for 4 cells."


def test_notes_say_whom_they_are_about():
    assert fits.notes(REPORT) == ["sm3 on l4: The end of the range fits.", "adam on l4: it raised [something]"]


def test_largest_model_is_told_in_parameters():
    model = answer(24, knob="n_layers", parameters=209_494_272)
    report = make_report({("sm3", "l4"): model}, vary=Vary(knob="n_layers"))
    assert fits.matrix(report).rows == (("sm3", "24 (209M)"),)
    table = fits.details(report)
    assert dict(zip(table.titles, table.rows[0], strict=True))["parameters"] == "209M"


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_keeps_to_the_width(width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    fits.show(REPORT, make_console(stream))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any("512+" in line for line in lines)


def test_document_survives_a_round_trip(tmp_path):
    REPORT.save(tmp_path / "fit.json")
    assert FitReport.load(tmp_path / "fit.json") == REPORT
    assert json.loads(REPORT.to_json())["schema"] == "memprof.fit/1"


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), ("[]", "has schema None"), ('{"schema": "memprof.fit/1"}', "is no valid fit: environment")],
)
def test_other_files_are_refused(text: str, words: str, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        FitReport.load(tmp_path / "other.json")


def test_markdown_and_frame():
    text = REPORT.to_markdown()
    assert "| sm3 | 19 | 512+ |" in text
    assert "it raised \\[something\\]" in text
    assert "```sh\nmemprof fit gpt2\n```" in text
    frame = REPORT.to_frame()
    assert frame.loc[0, "head_room_bytes"] == 2 * GIB
    assert frame["largest"].isna().tolist() == [False, False, False, True]


def test_exit_codes():
    assert exit_code(REPORT) == ExitCode.FAILED
    assert exit_code(make_report({("sm3", "l4"): answer(19), ("adam", "l4"): answer(0)})) == ExitCode.OK
    assert exit_code(make_report({("adam", "l4"): answer(0)})) == ExitCode.BUDGET_EXCEEDED
    assert exit_code(make_report({("adam", "l4"): "broken"})) == ExitCode.FAILED


def test_budget_below_the_weights_is_a_usage_error():
    nothing = answer(0, notes=["The weights alone take 475.00 MiB."])
    report = make_report({("adam", "cpu"): nothing})
    budget = report.devices[0].model_copy(update={"source": "budget"})
    with pytest.raises(UsageError, match=r"too small for the model: the weights alone take 475\.00 MiB"):
        exit_code(report.model_copy(update={"devices": [budget]}))
