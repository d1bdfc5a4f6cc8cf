from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS
from tests import children
from tests.cli.conftest import ROOT, Command

COMMANDS = ("compare", "models", "optimizers", "devices", "doctor", "schema", "gate", "diff", "reproduce")
LOADED = """
import sys
sys.argv = {arguments!r}
from memprof.cli import main
code = main()
print(code, *sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["gate", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = LOADED.format(arguments=["memprof", *arguments])
    done = children.run([sys.executable, "-c", script], cwd=ROOT)
    code, *loaded = done.stderr.split()
    assert code == "0"
    # Typer itself imports pydantic from 0.26 on; what memprof would import it for must stay out.
    assert {"torch", "pandas", "numpy", "memprof.documents.comparison", "memprof.documents.recipe"}.isdisjoint(loaded)
    assert {"rich.markdown", "rich.traceback", "markdown_it", "pygments"}.isdisjoint(loaded)
    if arguments == ["--help"] and "pydantic" not in loaded:  # pydantic imports these too
        assert {"importlib.metadata", "json", "secrets"}.isdisjoint(loaded)


def test_what_the_help_does_without_still_works() -> None:
    script = """
from memprof.cli.help import prepare_help
prepare_help()
from typer import rich_utils
from rich.markdown import Markdown
from rich.traceback import Traceback
assert type(rich_utils.Markdown("*a*")) is Markdown is not rich_utils.Markdown
assert type(rich_utils.Traceback.from_exception(ValueError, ValueError(), None)) is Traceback
"""
    children.run([sys.executable, "-c", script], cwd=ROOT)


def test_click_is_not_imported_by_name() -> None:
    sources = (ROOT / "memprof").rglob("*.py")
    assert not [path for path in sources if "import click" in path.read_text() or "typer._click" in path.read_text()]


def test_no_command_is_usage_with_the_help(memprof: Command) -> None:
    done = memprof()
    assert done.returncode == 2
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(memprof: Command, command: str) -> None:
    done = memprof(command, "-h")
    assert done.returncode == 0
    assert "Usage: memprof" in done.stdout


def test_no_option_is_cut_at_80_columns(memprof: Command) -> None:
    done = memprof("compare", "--help", TERMINAL_WIDTH="80", COLUMNS="80")
    assert "…" not in done.stdout
    assert "--checkpoint-activations" in done.stdout


def test_help_names_the_default_optimizers(memprof: Command) -> None:
    shown = " ".join(memprof("compare", "--help", TERMINAL_WIDTH="300", COLUMNS="300").stdout.split())
    assert f"Default: {'; '.join(DEFAULT_OPTIMIZERS)}." in shown


def test_version(memprof: Command) -> None:
    done = memprof("-V")
    assert done.returncode == 0
    assert done.stdout.startswith("memprof ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["frob"], "error: No such command 'frob'; see `memprof --help`"),
        (["comapre"], "error: No such command 'comapre'. Did you mean 'compare'? See `memprof --help`"),
        (["compare"], "error: Missing argument 'MODEL'; see `memprof compare --help`"),
        (["compare", "mlp", "--optimzer", "sm3"], "--optimizer"),
        (["compare", "mlp", "-b", "x"], "--batch-size"),
        (["compare", "mlp", "--precision", "fp8"], "fp32"),
        (
            ["compare", "mlp", "--steps", "1"],
            "error: --steps 1: the value should be greater than or equal to 2",
        ),
        (
            ["compare", "mlp", "--clip-grad", "0"],
            "error: --clip-grad 0.0: the value should be greater than 0",
        ),
        (["compare", "mlp", "--set", "x"], "error: --set takes KEY=VALUE"),
        (["compare", "mlp", "--budget", "3Q"], "error: '3Q' is not a size"),
        (["compare", "mlp", "-o", "sm4"], "did you mean 'sm3'?"),
        (["compare", "mlp", "-o", "sm3", "--reference", "adam"], "error: the reference 'adam' is not among"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(memprof: Command, arguments: list[str], sentence: str) -> None:
    done = memprof(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_debug_shows_the_traceback_and_keeps_the_exit_code(memprof: Command) -> None:
    done = memprof("compare", "mlp", "--set", "x", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "error: --set takes KEY=VALUE" in done.stderr


@pytest.fixture
def memprof_script() -> Callable[[str], children.Done]:
    """Runs `memprof` with what stands behind it on a shell's line."""

    def run(line: str) -> children.Done:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        script = f"{shlex.quote(sys.executable)} -m memprof {line}"
        return children.run(["/bin/sh", "-c", script], cwd=ROOT, env=environment, check=False)

    return run


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["schema", "optimizers", "gate --help"])
def test_a_reader_that_goes_away_does_not_change_the_exit_code(command: str, unbuffered: str) -> None:
    line = f"{{ {shlex.quote(sys.executable)} -m memprof {command}; echo $? >&2; }} | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    assert children.run(["/bin/sh", "-c", line], cwd=ROOT, env=environment).stderr.splitlines()[-1] == "0"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("command", ["schema", "--version"])
def test_a_full_disk_is_one_sentence(memprof_script: Callable[[str], children.Done], command: str) -> None:
    done = memprof_script(f"{command} > /dev/full")
    assert done.returncode == 3
    assert done.stderr == "error: cannot write the output: No space left on device; make room and run it again\n"


def test_closed_streams_are_nothing(memprof_script: Callable[[str], children.Done], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "out.json"
    done = memprof_script(f"compare mlp -b 1 -o sgd --no-fit --export-json {file} <&- >&- 2>&-")
    assert done.returncode == 0
    assert '"status": "ok"' in file.read_text()


def test_terminals_without_unicode_get_question_marks(memprof: Command) -> None:
    done = memprof("models", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "gpt2" in done.stdout


def test_schema_is_json_schema(memprof: Command) -> None:
    document = json.loads(memprof("schema").stdout)
    assert document["properties"]["schema"]["const"] == "memprof.comparison/1"
    assert {"runs", "environment", "capacity"} <= set(document["required"])
    assert {"workload", "recipe", "script"} <= set(document["properties"])  # a script has no recipe of memprof's
