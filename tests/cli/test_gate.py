from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from memprof.gate.formats.markdown import MARKER
from memprof.gate.report import Report
from tests import children
from tests.cli.conftest import ROOT, Command
from tests.gates import GIB, baseline_of, make_figures, report_of, with_values

CONFIG = """
[defaults]
model = "gpt2"
knobs = { n_layers = 12 }
device = "rtx-4090"

[budgets.pretrain]
optimizers = ["sm3", "adam"]
peak_allocated_bytes = ["12 GiB", "+2%"]
message = "ask the training team"
"""
SM3, ADAM = (
    with_values(make_figures(spec), peak_allocated_bytes=size * GIB) for spec, size in (("sm3", 9), ("adam", 10))
)
GROWN = with_values(
    ADAM.model_copy(update={"holders": {**ADAM.holders, "activations": {"layers.*.mlp.0": 10 * GIB}}}),
    peak_allocated_bytes=13 * GIB,
)
DEAD = make_figures("adam", status="failed", values={}, reason="the worker process ended without a result (SIGKILL)")
# Runs the command with entries that end as told, and nothing trained.
INTERRUPTED = """
import sys
from memprof.cli import main
from memprof.gate.measure import BudgetRunner
from tests.cli.test_gate import ADAM, SM3

def measure(self, budget, keep):
    keep([SM3])
    raise {error}

BudgetRunner.__enter__ = lambda self: self
BudgetRunner.measure = measure
sys.argv = ["memprof", "gate", *sys.argv[1:]]
sys.exit(main())
"""
LOADED = """
import sys
sys.argv = ["memprof", "gate", "--from", "saved.json", *sys.argv[1:]]
from memprof.cli import main
code = main()
print(code, *sorted(sys.modules), file=sys.stderr)
"""


def prepare(folder: Path, *made: Any, accepted: tuple[Any, ...] | None = (SM3, ADAM), config: str = CONFIG) -> Path:
    (folder / "memprof.toml").write_text(config)
    if accepted is not None:
        (folder / "memprof-baseline.json").write_text(baseline_of(*accepted).to_json())
    (folder / "saved.json").write_text(report_of([], list(made)).to_json())
    return folder


def script(folder: Path, text: str, *arguments: str) -> children.Done:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return children.run([sys.executable, "-c", text, *arguments], cwd=folder, env=environment, check=False)


def test_budgets_that_hold_exit_0(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, SM3, ADAM)
    done = inside("gate", "--from", "saved.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "4 checks: 4 passed"


def test_a_broken_budget_exits_1_with_its_cause_its_remedy_and_the_command(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, SM3, GROWN)
    done = inside("gate", "--from", "saved.json")
    assert done.returncode == 1
    assert "pretrain/adam: peak_allocated_bytes is 13.00 GiB, 1.00 GiB over the limit of 12.00 GiB" in done.stdout
    assert "2.80 GiB over the limit of 10.20 GiB (baseline 10.00 GiB +2%)" in done.stdout
    assert "why: activations +3.00 GiB, +6.00 GiB of it in layers.*.mlp.0" in done.stdout
    assert "fits: optimizer sm3 (9.00 GiB)" in done.stdout
    assert "says: ask the training team" in done.stdout
    assert done.stdout.splitlines()[-1] == "  memprof gate --update-baseline --from saved.json"


def test_the_command_at_the_end_accepts_the_figures(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, SM3, GROWN, config=CONFIG.replace('"12 GiB", ', ""))
    failed = inside("gate", "--from", "saved.json")
    assert failed.returncode == 1
    accepted = inside(*failed.stdout.splitlines()[-1].split()[1:])
    assert accepted.returncode == 0
    assert "pretrain/adam peak_allocated_bytes: 10.00 GiB -> 13.00 GiB, +3.00 GiB (+30.0 %)" in accepted.stdout
    assert "sm3 peak" not in accepted.stdout.split("changes\n")[1]
    assert inside("gate", "--from", "saved.json").returncode == 0
    again = inside("gate", "--from", "saved.json", "--update-baseline")
    assert "memprof-baseline.json: nothing moved" in again.stdout


def test_a_failed_trial_exits_3_and_a_mistake_2(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, SM3, DEAD)
    done = inside("gate", "--from", "saved.json")
    assert done.returncode == 3
    assert "the trial failed: the worker process ended without a result (SIGKILL)" in done.stdout
    prepare(tmp_path, SM3, DEAD.model_copy(update={"mistake": True}))
    assert inside("gate", "--from", "saved.json").returncode == 2


def test_an_entry_that_was_not_run_and_one_that_was_renamed_exit_1(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, SM3)
    done = inside("gate", "--from", "saved.json")
    assert done.returncode == 1
    assert "pretrain/adam: missing: it was not run" in done.stdout
    prepare(tmp_path, SM3, ADAM, accepted=(SM3, ADAM, make_figures(entry="before")))
    renamed = inside("gate", "--from", "saved.json")
    assert renamed.returncode == 1
    assert "before/adam: missing: the baseline has this entry, but the configuration no longer does" in renamed.stdout
    assert inside("gate", "--from", "saved.json", "--only", "pretrain").returncode == 0


def test_stricter_policies_fail_what_otherwise_warns(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, SM3, with_values(ADAM, peak_allocated_bytes=GIB))
    stale = inside("gate", "--from", "saved.json")
    assert stale.returncode == 0
    assert "the baseline is stale" in stale.stdout
    assert stale.stdout.splitlines()[-1] == "  memprof gate --update-baseline --from saved.json"
    assert inside("gate", "--from", "saved.json", "--fail-on-improvement").returncode == 1
    prepare(tmp_path, SM3, ADAM, accepted=(SM3,))
    assert inside("gate", "--from", "saved.json").returncode == 0
    assert inside("gate", "--from", "saved.json", "--strict").returncode == 1


def test_another_branchs_report_is_a_baseline(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, SM3, GROWN, accepted=None)
    (tmp_path / "main.json").write_text(report_of([], [SM3, GROWN]).to_json())
    done = inside("gate", "--from", "saved.json", "--baseline", "main.json")
    assert "limit of 10.20" not in done.stdout
    assert done.returncode == 1  # the ceiling still counts
    assert done.stdout.count("EXCEEDED") == 1


@pytest.mark.parametrize(
    ("config", "arguments", "code", "sentence"),
    [
        ("[budgets.x]\nmodel = gpt2", (), 2, "memprof.toml:2: not TOML"),
        (
            "[budgets.x]\nmodell = 'gpt2'",
            (),
            2,
            "memprof.toml:2: [budgets.x] has no key 'modell'; did",
        ),
        ("[budgets.x]\nmodel = 'gpt2'\nstate_bytes = 5", (), 2, "has no unit"),
        ("", (), 5, "has no budget to run"),
        ("[budgets.x]\nmodel = 'gpt2'\nlevel = 'off'", (), 5, "has no budget to run"),
        (CONFIG, ("--only", "pretrian"), 2, "no budget is called 'pretrian'; did you mean 'pretrain'?"),
        (CONFIG, ("--config", "other.toml"), 2, "cannot read other.toml"),
        (CONFIG, ("--baseline", "other.json"), 2, "there is no baseline other.json"),
        (CONFIG, ("--from", "other.json"), 2, "cannot read other.json"),
        (CONFIG, ("--from", "memprof.toml"), 2, "memprof.toml:2: not JSON"),
        (CONFIG, ("--format", "xml"), 2, "gha-benchmark"),
        (CONFIG, ("--export-json", "none/x.json"), 2, "cannot write"),
        (CONFIG, ("--export-json", "saved.json"), 2, "saved.json exists; --force overwrites it"),
        (CONFIG, ("--export-json", "x", "--export-junit", "x"), 2, "two exports name the same file"),
        (CONFIG, ("--export-markdown", "/proc/x.md"), 2, "cannot write /proc/x.md"),
        (CONFIG, ("--strict", "init", "gpt2"), 2, "--strict is an option of `memprof gate`"),
        (CONFIG.replace("n_layers = 12", "n_layers = 6"), (), 2, "with n_layers 12, and the entry says 6"),
        (CONFIG + "batch_size = 4\n", (), 2, "with batch_size 8, and the entry says 4"),
    ],
)
def test_mistakes_are_one_sentence(
    inside: Command, tmp_path: Path, config: str, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    prepare(tmp_path, SM3, ADAM, config=config)
    given = arguments if {"--from", "init"} & set(arguments) else ("--from", "saved.json", *arguments)
    done = inside("gate", *given)
    assert done.returncode == code
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_growth_limits_need_a_baseline_before_anything_is_run(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, accepted=None, config=CONFIG.replace('"gpt2"', '"nowhere.py:model"'))
    done = inside("gate")
    assert done.returncode == 2
    assert done.stderr == (
        "error: memprof.toml:7: pretrain limits peak_allocated_bytes to +2% against the baseline, and there is no "
        "memprof-baseline.json; make it with `memprof gate --update-baseline`\n"
    )


@pytest.mark.parametrize("damage", [b'{"schema": "memprof.basel', b"\xff", b'{"schema": "memprof.baseline/9"}'])
def test_a_damaged_baseline_stops_before_anything_is_run(inside: Command, tmp_path: Path, damage: bytes) -> None:
    prepare(tmp_path, config=CONFIG.replace('"gpt2"', '"nowhere.py:model"'))
    (tmp_path / "memprof-baseline.json").write_bytes(damage)
    done = inside("gate", "--update-baseline")
    assert done.returncode == 2
    assert "baseline" in done.stderr
    assert (tmp_path / "memprof-baseline.json").read_bytes() == damage


def test_a_baseline_that_cannot_be_written_stops_before_anything_is_run(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, accepted=None, config=f'baseline = "/proc/b.json"\n{CONFIG}'.replace('"gpt2"', '"nowhere.py:x"'))
    done = inside("gate", "--update-baseline")
    assert done.returncode == 2
    assert "cannot write /proc/b.json" in done.stderr


def test_files_are_written_beside_the_output_and_github_gets_its_summary(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, SM3, GROWN)
    (tmp_path / "summary.md").write_text("# Before\n")
    files = [
        word for kind in ("json", "junit", "markdown", "gha-benchmark") for word in (f"--export-{kind}", f"o.{kind}")
    ]
    done = inside("gate", "--from", "saved.json", "--format", "github", *files, GITHUB_STEP_SUMMARY="summary.md")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("::stop-commands::")
    token = lines[0].rpartition("::")[2]
    after = lines[lines.index(f"::{token}::") + 1 :]
    assert [line.split(",")[0] for line in after] == ["::error file=memprof.toml"] * 2
    assert "line=7," in after[0]
    assert Report.load(tmp_path / "o.json").exit_code == 1
    assert (tmp_path / "o.markdown").read_text().startswith(MARKER)
    assert (tmp_path / "summary.md").read_text() == f"# Before\n{(tmp_path / 'o.markdown').read_text()}\n"
    assert (tmp_path / "o.junit").read_text().startswith("<?xml")
    assert len(json.loads((tmp_path / "o.gha-benchmark").read_text())) == 6


def test_annotations_name_files_from_the_repositorys_root(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, SM3, GROWN)
    done = inside("gate", "--from", "saved.json", "--format", "github", GITHUB_WORKSPACE=str(tmp_path.parent))
    assert f"::error file={tmp_path.name}/memprof.toml,line=7," in done.stdout
    elsewhere = inside("gate", "--from", "saved.json", "--format", "github", GITHUB_WORKSPACE="/nowhere")
    assert "::error file=memprof.toml,line=7," in elsewhere.stdout


@pytest.mark.parametrize("name", ["json", "junit", "markdown", "gha-benchmark"])
def test_every_format_can_go_to_stdout(inside: Command, tmp_path: Path, name: str) -> None:
    prepare(tmp_path, SM3, ADAM)
    done = inside("gate", "--from", "saved.json", "--format", name)
    assert done.returncode == 0
    assert done.stdout[0] in "{[<"


@pytest.mark.parametrize("document", ["gate", "baseline", "difference"])
def test_schemas_are_published_and_hold(inside: Command, tmp_path: Path, document: str) -> None:
    prepare(tmp_path, SM3, GROWN)
    schema = json.loads(inside("schema", document).stdout)
    assert schema["properties"]["schema"]["const"] == f"memprof.{document}/1"
    if document == "baseline":
        jsonschema.validate(json.loads((tmp_path / "memprof-baseline.json").read_text()), schema)
    elif document == "gate":
        jsonschema.validate(json.loads(inside("gate", "--from", "saved.json", "--format", "json").stdout), schema)


def test_judging_saved_figures_imports_no_torch(tmp_path: Path) -> None:
    prepare(tmp_path, SM3, GROWN)
    done = script(tmp_path, LOADED, "--export-markdown", "x.md", "--format", "junit")
    code, *loaded = done.stderr.split()
    assert code == "1"
    assert not {"torch", "pandas", "numpy"} & set(loaded)


@pytest.mark.parametrize(("error", "code"), [("KeyboardInterrupt", 130), ("RuntimeError('bad [thing]')", 3)])
def test_what_was_finished_is_kept_where_it_is_cut_short(tmp_path: Path, error: str, code: int) -> None:
    prepare(tmp_path, SM3)
    done = script(tmp_path, INTERRUPTED.format(error=error), "--export-json", "part.json")
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    report = Report.load(tmp_path / "part.json")
    assert [figures.optimizer for figures in report.figures] == ["sm3"]
    assert report.exit_code == 130  # the report is that of a gate that was cut short
    assert [verdict.optimizer for verdict in report.failures] == ["adam"]


def test_a_report_that_was_cut_short_does_not_pass(inside: Command, tmp_path: Path) -> None:
    prepare(tmp_path, SM3)
    script(tmp_path, INTERRUPTED.format(error="KeyboardInterrupt"), "--export-json", "part.json")
    assert inside("gate", "--from", "part.json").returncode == 1
