"""`memprof compare --validate` for real: exact on the CPU, in the table, in Markdown and in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

pytest.importorskip("torch")

SMALL = ("compare", "mlp", "-b", "2", "--set", "d_model=64", "-o", "adam", "--no-fit")


def test_the_error_is_shown_everywhere(memprof: Command, tmp_path: Path) -> None:
    done = memprof(*SMALL, "--device", "cpu", "--validate", "--export-json", "x.json", "--export-markdown", "x.md")
    assert done.returncode == 0, done.stderr
    assert "Predicted against measured" in done.stdout
    assert "adam: tensors" in done.stdout
    (run,) = json.loads((tmp_path / "x.json").read_text())["runs"]
    deviations = run["validation"]["deviations"]
    tensors = [one for one in deviations if one["layer"] in ("state", "tensors")]
    assert len(tensors) > 4
    assert all(one["predicted_bytes"] == one["measured_bytes"] for one in tensors)
    report = (tmp_path / "x.md").read_text()
    assert "Predicted against measured" in report
    assert "| adam | tensors, backward |" in report


def test_a_simulated_gpu_cannot_be_measured(memprof: Command) -> None:
    done = memprof(*SMALL, "--device", "rtx-4090", "--validate")
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        "--validate trains on the device, and rtx-4090 is simulated; leave --validate out"
    )


def test_an_own_device_is_predicted_for_and_a_broken_file_is_one_sentence(memprof: Command, tmp_path: Path) -> None:
    entry = {"name": "mine-9gb", "memory_bytes": 9 * 10**9, "compute_capability": "8.6", "sm_count": 30}
    (tmp_path / "mine.json").write_text(json.dumps({"schema": "memprof.devices/1", "devices": [entry]}))
    done = memprof(*SMALL, "--device", "mine-9gb", "--json", MEMPROF_DEVICES="mine.json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["device"] == "mine-9gb"
    (tmp_path / "mine.json").write_text("[")
    done = memprof(*SMALL, "--device", "mine-9gb", MEMPROF_DEVICES="mine.json")
    assert done.returncode == 2
    assert "mine.json (MEMPROF_DEVICES) is not a valid list of devices" in done.stderr
    assert "Traceback" not in done.stderr
