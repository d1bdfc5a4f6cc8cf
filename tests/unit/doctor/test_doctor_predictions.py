"""What `memprof doctor` says of predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memprof.doctor import predictions as checks
from memprof.errors import UsageError
from memprof.prediction import accuracy as figures
from memprof.prediction.accuracy import Accuracy, in_words

torch = pytest.importorskip("torch")

DOCUMENT = {
    "schema": "memprof.accuracy/1",
    "source": "runs of somebody",
    "command": "python -m something",
    "date": "2026-11-21",
    "torch": "2.6.0",
    "families": [
        {
            "name": "transformers",
            "runs": 77,
            "median_error": 0.0031,
            "p95_error": 0.042,
            "signed_median": -0.001,
            "upper_held": 0.974,
        },
        {"name": "CNNs", "runs": 40, "median_error": 0.012, "p95_error": 0.09, "signed_median": 0.0},
    ],
}


@pytest.mark.parametrize(("version", "level"), [("2.11.0+cu130", "warn"), ("2.14.0", "pass"), ("2.16.0", "warn")])
def test_a_version_outside_of_what_was_checked_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, version: str, level: str
) -> None:
    monkeypatch.setattr(checks, "CHECKED_ON", {"torch._a": ("2.13.0", "2.15.0"), "torch._b": ("2.8.0", "2.15.0")})
    monkeypatch.setattr(torch, "__version__", version)
    found = checks.check_private_apis()
    assert found.level == level
    assert ("torch._a" in found.finding) == (level == "warn")


def test_accuracy_is_told_with_its_source() -> None:
    text = in_words(Accuracy.model_validate(DOCUMENT))
    assert "77 runs of transformers: median error 0.31 %, 95 % within 4.2 %, within the upper bound in 97 %" in text
    assert "40 runs of CNNs: median error 1.20 %, 95 % within 9.0 %" in text
    assert text.endswith("(runs of somebody, torch 2.6.0, 2026-11-21)")


def test_figures_come_from_the_file_or_are_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "files", lambda package: tmp_path)
    assert checks.check_accuracy().level == "warn"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "accuracy.json").write_text(json.dumps(DOCUMENT))
    found = checks.check_accuracy()
    assert found.level == "pass"
    assert "77 runs of transformers" in found.finding


def test_the_committed_figures_can_be_read() -> None:
    found = figures.accuracy()
    assert found is None or in_words(found)


def test_a_broken_file_of_devices_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise UsageError("devices.json is not a valid list of devices")

    monkeypatch.setattr("memprof.devices.catalog.catalog", broken)
    assert checks.check_devices() == checks.Check("catalog", "fail", "devices.json is not a valid list of devices")


def test_what_cudnn_takes_is_said_to_be_its_own_choice() -> None:
    assert "upper bound" in checks.check_convolutions().finding
