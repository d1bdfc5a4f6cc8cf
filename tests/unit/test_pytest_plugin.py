from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import children
from tests.cli.conftest import ROOT

pytest.importorskip("torch")

BUDGETS = """
import pytest
import torch
from torch import nn
from helper import WIDTH
from memprof import Workload

@pytest.mark.memory_budget(peak="1 GiB", optimizer="sm3", device="rtx-3060", batch_size=4)
@pytest.mark.parametrize("n_layers", [1, 2])
def test_it_fits(n_layers):
    return Workload(
        model=lambda: nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(n_layers))),
        batch=lambda batch_size: torch.randn(batch_size, WIDTH),
        loss=lambda model, x: model(x).square().mean(),
    )

@pytest.mark.memory_budget(peak="1 MiB", state="1 B", optimizer=["sgd", "adam"], device="rtx-3060", message="ask us")
def test_it_does_not_fit():
    return Workload(
        model=lambda: nn.Linear(WIDTH, WIDTH),
        batch=lambda batch_size: torch.randn(batch_size, WIDTH),
        loss=lambda model, x: model(x).square().mean(),
    )

@pytest.mark.memory_budget(model="mlp", peak="1 GiB", device="rtx-3060", optimizer="sgd", precision="amp-bf16")
def test_the_body_runs_where_the_model_is_named(tmp_path):
    assert tmp_path.exists()
    raise AssertionError("the body ran")

@pytest.mark.memory_budget(script="train.py --width=64", peak="1 GiB", device="rtx-3060")
def test_a_script(tmp_path):
    raise AssertionError("the body beside the script ran")

@pytest.mark.memory_budget(script="train.py --width=64", optimizer=["as-is", "sm3"], state="1 KiB", device="rtx-3060")
def test_a_script_with_too_much_state(): ...
"""
MISTAKES = """
import pytest

@pytest.mark.memory_budget(peek="1 GiB", device="rtx-3060", optimizer="sgd")
def test_a_keyword(): ...

@pytest.mark.memory_budget("1 GiB")
def test_a_position(): ...

@pytest.mark.memory_budget(peak="+2%")
def test_growth(): ...

@pytest.mark.memory_budget(peak="1 GiB")
def test_a_fixture(tmp_path): ...

@pytest.mark.memory_budget(peak="1 GiB")
@pytest.mark.parametrize("x", [object()])
def test_a_parameter(x): ...

class TestGroup:
    @pytest.mark.memory_budget(peak="1 GiB")
    def test_a_method(self): ...

@pytest.mark.memory_budget(peak="1 GiB", device="rtx-3061", optimizer="sgd")
def test_a_device(): ...

@pytest.mark.memory_budget(script="train.py", model="mlp", peak="1 GiB")
def test_both(): ...

@pytest.mark.memory_budget(script="train.py", batch_size=8, peak="1 GiB")
def test_a_batch(): ...

@pytest.mark.memory_budget(script="train.py", peak="1 GiB", device="rtx-3060")
def test_no_script(): ...
"""
BLOCKS = """
import pytest
import torch

def test_figures(memory_block):
    kept = []
    old = torch.zeros(10**6)
    with memory_block("cpu") as used:
        first = torch.zeros(1000, 1000)
        kept.append(torch.zeros(2000))
        del old
        del first
        torch.zeros(500)
    assert used.peak_bytes == 4_000_000 + 8000
    assert used.retained_bytes == 8000
    assert used.operators == {"aten::zeros": 4_008_000}

def test_a_limit_that_holds(memory_block):
    with memory_block(limit="4000 B"):
        torch.zeros(1000)

def test_a_limit_that_does_not(memory_block):
    with memory_block(limit="3999 B"):
        torch.zeros(1000)

def test_another_device(memory_block):
    with memory_block("tpu"):
        pass

def test_the_bodys_own_error_comes_first(memory_block):
    with memory_block(limit=1):
        torch.zeros(1000)
        raise ValueError("of the body")

def test_one_after_another(memory_block):
    for size in (1, 2):
        with memory_block() as used:
            torch.zeros(1000 * size)
        assert used.peak_bytes == 4000 * size
"""
LOADED = """
import sys
import pytest
code = pytest.main(["-q", "-p", "memprof.pytest_plugin", "-p", "no:cacheprovider", "test_plain.py"])
assert code == 0
print(sorted(name for name in sys.modules if name.split(".")[0] in ("memprof", "torch", "pydantic")))
"""


def run(folder: Path, *arguments: str) -> children.Done:
    """Run pytest in a folder with the plugin, whether it is installed or not, and without this project's settings."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment = {**plain, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "memprof.pytest_plugin", "-p", "no:cacheprovider", *arguments]
    return children.run(command, cwd=folder, env=environment, check=False)


def test_budgets_at_tests(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = lib\naddopts = --strict-markers\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "helper.py").write_text("WIDTH = 1024\n")  # only pytest's own path finds it
    (tmp_path / "memprof.toml").write_text('[defaults]\nbatch_size = 2\nstate_bytes = "+1%"\n[budgets]\n')
    (tmp_path / "test_memory.py").write_text(BUDGETS)
    shutil.copy(ROOT / "tests" / "data" / "scripts" / "batches.py", tmp_path / "train.py")
    done = run(tmp_path, "--junit-xml=out.xml", "test_memory.py")
    assert "4 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "test_it_does_not_fit/adam: state_bytes is 8.01 MiB, 8.01 MiB over the limit of 1 B" in done.stdout
    assert "  why: optimizer state 8.01 MiB" in done.stdout
    assert "  says: ask us" in done.stdout
    assert "AssertionError: the body ran" in done.stdout
    assert "AssertionError: the body beside the script ran" in done.stdout
    assert "test_a_script_with_too_much_state/as-is: state_bytes is" in done.stdout
    assert "Traceback" not in done.stdout
    # 1024 x 1024 weights, 1024 biases: parameters and gradients alone are 8 MiB.
    assert "test_memory.py::test_it_fits[1] sm3: peak_allocated_bytes" in done.stdout
    properties = {
        (case.get("name"), one.get("name")): int(one.get("value") or 0)
        for case in ElementTree.parse(tmp_path / "out.xml").iter("testcase")
        for one in case.iter("property")
    }
    assert properties["test_it_fits[2]", "sm3 parameters_bytes"] == 2 * (1024 * 1024 + 1024) * 4
    assert properties["test_it_does_not_fit", "adam state_bytes"] == 2 * (1024 * 1024 + 1024) * 4 + 2 * 4


def test_mistakes_at_tests_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "test_mistakes.py").write_text(MISTAKES)
    done = run(tmp_path, "-rN", "test_mistakes.py")
    assert "10 failed" in done.stdout, done.stdout
    for sentence in (
        "@pytest.mark.memory_budget has no key 'peek'; did you mean 'peak'?",
        "@pytest.mark.memory_budget takes keywords only, for example peak='2 GiB'",
        "has no baseline for peak_allocated_bytes = '+2%'; write a size",
        "test_a_fixture takes the fixture 'tmp_path', which workers do not have: name the workload with model=",
        "the parameter x of test_a_parameter[x0] is of type object; workers take numbers and texts",
        "test_a_method is a method, which workers cannot call",
        "'rtx-3061' is not a GPU that can be simulated; the nearest are",
        "@pytest.mark.memory_budget has a 'model' and a 'script'; keep one",
        "@pytest.mark.memory_budget has the key 'batch_size', which describes a model",
        "cannot read train.py: No such file or directory",
    ):
        assert sentence in done.stdout
    assert "Traceback" not in done.stdout
    assert "another exception" not in done.stdout
    assert "INTERNALERROR" not in done.stdout


def test_budgets_are_summed_up_where_other_processes_ran_the_tests(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    marker = '@pytest.mark.memory_budget(model="mlp", state="1 MiB", device="rtx-3060", optimizer="sgd")'
    (tmp_path / "test_memory.py").write_text(f"import pytest\n{marker}\ndef test_it(): ...\n")
    done = run(tmp_path, "-p", "xdist", "-n", "1", "test_memory.py")
    assert "test_memory.py::test_it sgd: state_bytes 0 B, limit 1.00 MiB" in done.stdout, done.stdout + done.stderr


def test_blocks_are_measured_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "test_blocks.py").write_text(BLOCKS)
    done = run(tmp_path, "test_blocks.py")
    assert "3 failed, 3 passed" in done.stdout, done.stdout
    assert (
        "the block took 3.91 KiB at the peak (3.91 KiB by aten::zeros): 1 B over its limit of 3.91 KiB" in done.stdout
    )
    assert "memory_block watches 'cpu' or 'cuda', not 'tpu'" in done.stdout
    assert "ValueError: of the body" in done.stdout


def test_a_plugin_that_is_not_used_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text("def test_it():\n    assert True\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = children.run([sys.executable, "-c", LOADED], cwd=tmp_path, env=environment)
    assert done.stdout.splitlines()[-1] == "['memprof', 'memprof.pytest_plugin']"
