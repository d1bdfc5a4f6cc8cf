"""The composite action: its steps run here as a runner would run them, with a `memprof` that notes what it is told."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from memprof.errors import ExitCode
from tests import children

ROOT = Path(__file__).parents[3]
ACTION = yaml.safe_load((ROOT / ".github" / "actions" / "memprof" / "action.yml").read_text())
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "memprof.yml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
EXPRESSION = re.compile(r"\$\{\{\s*(inputs|steps|github)\.([\w.-]+)\s*\}\}")
STUB = """#!{python}
import os, sys
if sys.argv[1:3] == ["-m", "memprof"]:
    open(os.environ["TOLD"], "w").write("\\n".join(sys.argv[3:]))
    sys.exit(int(os.environ["CODE"]))
open(os.environ["TOLD"], "w").write("\\n".join(sys.argv[1:]))
"""
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the action's steps are bash")


def step(name: str) -> dict[str, Any]:
    return next(one for one in ACTION["runs"]["steps"] if one["name"] == name)


def run_step(name: str, folder: Path, code: int = 0, **inputs: str) -> tuple[int, list[str], dict[str, str]]:
    """Run a step with `python` a stub; return its exit code, what the stub was told, and the step's outputs."""
    python = folder / "python"
    python.write_text(STUB.format(python=sys.executable))
    python.chmod(0o755)
    given = {key: spec.get("default", "") for key, spec in ACTION["inputs"].items()}
    given |= {key.replace("_", "-"): value for key, value in inputs.items()} | {"python": str(python)}
    values = {**{f"inputs.{key}": value for key, value in given.items()}, "github.action_path": "/action"}
    environment = {
        key: EXPRESSION.sub(lambda found: values[f"{found[1]}.{found[2]}"], text)
        for key, text in step(name).get("env", {}).items()
    }
    environment |= {"GITHUB_OUTPUT": str(folder / "output"), "TOLD": str(folder / "told"), "CODE": str(code)}
    script = folder / "script.sh"
    script.write_text(step(name)["run"])
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]  # as the runner calls bash
    done = children.run(command, cwd=folder, env={**os.environ, **environment}, check=False)
    written = (folder / "output").read_text().splitlines() if (folder / "output").exists() else []
    return done.returncode, (folder / "told").read_text().splitlines(), dict(line.split("=", 1) for line in written)


def test_inputs_reach_the_steps_through_the_environment_alone() -> None:
    for one in ACTION["runs"]["steps"]:
        assert "${{" not in one["run"]  # a template in a script is code that whoever names a branch can write
        assert one["shell"] == "bash"
        for text in one["env"].values():
            for source, key in EXPRESSION.findall(text):
                assert source == "github" or key in ACTION["inputs"]
    used = {key for one in ACTION["runs"]["steps"] for _, key in EXPRESSION.findall(str(one))}
    assert set(ACTION["inputs"]) <= used  # no input that does nothing


ALL_STEPS = [*ACTION["runs"]["steps"], *WORKFLOW["jobs"]["gate"]["steps"]]


@pytest.mark.parametrize("one", [one for one in ALL_STEPS if "run" in one], ids=lambda one: str(one["name"]))
def test_every_script_is_bash(one: dict[str, Any]) -> None:
    children.run(["bash", "-n"], input=one["run"])


def test_without_inputs_the_budgets_are_run_with_every_report(tmp_path: Path) -> None:
    code, told, outputs = run_step("Run the memory budgets", tmp_path)
    assert code == 0
    assert told[:4] == ["gate", "--format", "github", "--force"]
    reports = str(tmp_path / "memprof-report")
    assert outputs == {"exit-code": "0", "reports": reports}
    assert told[4:] == [
        word
        for kind, file in (
            ("json", "report.json"),
            ("junit", "junit.xml"),
            ("markdown", "comment.md"),
            ("gha-benchmark", "benchmark.json"),
        )
        for word in (f"--export-{kind}", f"{reports}/{file}")
    ]


def test_every_input_becomes_its_option_as_one_word(tmp_path: Path) -> None:
    _, told, _ = run_step(
        "Run the memory budgets",
        tmp_path,
        config="a b.toml",
        only="pretrain-*\n$(touch hacked)\n",
        baseline="main branch.json",
        strict="true",
        fail_on_improvement="true",
        reports="out put",
    )
    assert told[told.index("--config") + 1] == "a b.toml"
    assert [told[index + 1] for index, word in enumerate(told) if word == "--only"] == ["pretrain-*", "$(touch hacked)"]
    assert told[told.index("--baseline") + 1] == "main branch.json"
    assert {"--strict", "--fail-on-improvement"} <= set(told)
    assert str(tmp_path / "out put" / "junit.xml") in told
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("code", [1, 2, 3, 5])
def test_the_exit_code_is_the_steps_and_an_output(tmp_path: Path, code: int) -> None:
    returned, _, outputs = run_step("Run the memory budgets", tmp_path, code=code)
    assert (returned, outputs["exit-code"]) == (code, str(code))
    described = set(re.findall(r"\d+", ACTION["outputs"]["exit-code"]["description"]))
    assert described == {str(int(one)) for one in ExitCode} - {"130"}


def test_memprof_is_installed_from_the_actions_own_checkout_unless_told_otherwise(tmp_path: Path) -> None:
    assert run_step("Install memprof", tmp_path)[1] == ["-m", "pip", "install", "--quiet", "/action/../../.."]
    assert run_step("Install memprof", tmp_path, install="sm3-memprof==1")[1][-1] == "sm3-memprof==1"
    assert (ROOT / ".github" / "actions" / "memprof" / "../../.." / "pyproject.toml").exists()
    assert step("Install memprof")["if"] == "inputs.install != 'none'"


def test_the_workflow_uses_the_action_on_the_sample_with_read_only_rights() -> None:
    steps = WORKFLOW["jobs"]["gate"]["steps"]
    (used,) = [one for one in steps if one.get("uses", "").startswith("./")]
    assert (ROOT / used["uses"] / "action.yml").exists()
    assert set(used["with"]) <= set(ACTION["inputs"])
    assert (ROOT / used["with"]["working-directory"] / "memprof.toml").exists()
    assert WORKFLOW["permissions"] == {"contents": "read"}
    others = [one["uses"] for one in steps if "uses" in one and not one["uses"].startswith("./")]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", use) for use in others)


def test_the_pre_commit_hook_runs_the_gate_where_pytorch_is() -> None:
    (hook,) = HOOKS
    assert hook["entry"] == "memprof gate"
    assert (hook["language"], hook["pass_filenames"]) == ("system", False)
