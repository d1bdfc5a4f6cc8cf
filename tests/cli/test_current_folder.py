"""Nothing of the current folder is taken for a module that memprof or PyTorch imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests import children
from tests.cli.conftest import ROOT

# As the installed command starts: with the current folder nowhere on the path.
COMMAND = "import sys; del sys.path[0]; from memprof.cli import main; sys.exit(main())"
NAMES = ("types", "random", "queue", "inspect", "select", "profile", "torch", "numpy", "sm3", "memprof", "psutil")
MODEL = """
import torch
from torch import nn

def build():
    return nn.Linear(64, 64)

def make_batch(batch_size):
    return torch.randn(batch_size, 64)

def loss(model, batch):
    return model(batch).sum()
"""


def memprof(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, *arguments, "--device", "cpu", "--no-fit", "--json"]
    return children.run(command, cwd=folder, check=False, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})


def test_files_of_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py was run')")
    done = memprof(tmp_path, "compare", "mlp", "-b", "2", "--set", "d_model=8", "-o", "sm3")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["status"] == "ok"


def test_a_file_beside_the_model_is_not_taken_for_the_optimizer(tmp_path: Path) -> None:
    (tmp_path / "sm3.py").write_text("import torch\nclass SM3(torch.optim.Adam): pass\n")
    (tmp_path / "model.py").write_text(MODEL)
    done = memprof(tmp_path, "compare", "model.py:build", "-b", "2", "-o", "sm3", "-o", "sm3.py:SM3")
    assert done.returncode == 0, done.stderr
    ours, theirs = json.loads(done.stdout)["runs"]
    assert ours["state"]["bytes"] < theirs["state"]["bytes"] == 2 * (64 * 64 + 64) * 4 + 2 * 4  # Adam's
