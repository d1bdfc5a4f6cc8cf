"""`memprof run` from the shell."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Command

pytest.importorskip("torch")
SCRIPT = Path(__file__).parents[1] / "data" / "scripts" / "batches.py"
VARY = ("run", "--device", "rtx-4090", "--json", "--vary", "batch=8:16:8")


def test_the_largest_batch_of_a_script(memprof: Command, tmp_path: Path) -> None:
    shutil.copy(SCRIPT, tmp_path / "train.py")
    done = memprof(*VARY, "train.py", "--batch_size={batch}")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["script"]["knobs"] == {"batch": 16}
    assert "as-is  batch=8 (fit)" in done.stderr
    nothing = memprof(*VARY, "--budget", "4MiB", "train.py", "--batch_size={batch}")
    assert nothing.returncode == 1
    assert json.loads(nothing.stdout)["runs"][0]["fit"]["batch_size"]["value"] == 0


def test_a_script_where_a_model_is_wanted(memprof: Command, tmp_path: Path) -> None:
    shutil.copy(SCRIPT, tmp_path / "train.py")
    for command in ("fit", "advise"):
        done = memprof(command, "train.py", "--device", "rtx-4090")
        assert done.returncode == 2
        assert "memprof run --vary batch=1:64 train.py --batch_size={batch}" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
