from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from memprof.documents.comparison import Breakdown, Comparison, Run
from memprof.gate.diff import compare_documents
from tests.cli.conftest import Command
from tests.comparisons import MIB, make_broken_run, make_comparison, make_run


def with_table(run: Run, table: dict[str, dict[str, int]]) -> Run:
    held: Any = run.breakdown
    breakdown = Breakdown(**{**held.model_dump(), "by_category_and_module": table})
    return run.model_copy(update={"breakdown": breakdown})


def make_pair() -> tuple[Comparison, Comparison]:
    old = with_table(make_run("adam", 800), {"activations": {"layers.0.mlp": 100 * MIB, "layers.1.mlp": 100 * MIB}})
    grown = make_run("adam", 800, activations=500 * MIB)
    new = with_table(grown, {"activations": {"layers.0.mlp": 250 * MIB, "layers.1.mlp": 250 * MIB}})
    return make_comparison(old, make_run("sgd", 0)), make_comparison(new, make_broken_run("sm3", "oom", "too large"))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    for name, comparison in zip(("old.json", "new.json"), make_pair(), strict=True):
        comparison.save(tmp_path / name)
    return "old.json", "new.json"


def test_the_category_and_the_module_that_grew_are_named(inside: Command, pair: tuple[str, str]) -> None:
    done = inside("diff", *pair)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "old.json -> new.json: 3 worse"
    assert "adam       peak_allocated_bytes" in done.stdout
    assert "+300.00 MiB" in done.stdout
    assert "  activations +300.00 MiB in layers.*.mlp" in done.stdout
    assert "only in the old comparison" in done.stdout
    assert "only in the new comparison" in done.stdout
    assert "state_bytes" not in done.stdout.split("only in")[0]
    assert "state_bytes" in inside("diff", *pair, "--all").stdout


def test_the_same_twice_moved_nothing(inside: Command, pair: tuple[str, str]) -> None:
    done = inside("diff", pair[0], pair[0])
    assert done.returncode == 0
    assert done.stdout == "old.json -> old.json: no figure moved beyond its noise\n"


def test_json_keeps_to_its_schema_and_markdown_escapes(inside: Command, pair: tuple[str, str]) -> None:
    document = json.loads(inside("diff", *pair, "--format", "json").stdout)
    jsonschema.validate(document, json.loads(inside("schema", "difference").stdout))
    adam = document["runs"][0]
    peak = next(figure for figure in adam["figures"] if figure["metric"] == "peak_allocated_bytes")
    assert (peak["outcome"], peak["new"] - peak["old"]) == ("worse", 300 * MIB)
    assert adam["why"][0] == "activations +300.00 MiB in layers.*.mlp"
    text = inside("diff", *pair, "--format", "markdown").stdout
    assert "- activations +300.00 MiB in layers.\\*.mlp" in text


def test_outcomes_follow_the_noise_of_each_figure() -> None:
    base, near = make_run("adam", 800, activations=200 * MIB), make_run("adam", 801, activations=201 * MIB)
    (run,) = compare_documents(make_comparison(base), make_comparison(near), ("a", "b")).runs
    outcomes = {figure.metric: figure.outcome for figure in run.figures}
    assert outcomes["peak_allocated_bytes"] == "within-noise"
    assert outcomes["state_bytes"] == "worse"  # exact
    assert outcomes["parameters_bytes"] == "same"
    (back,) = compare_documents(make_comparison(near), make_comparison(base), ("b", "a")).runs
    assert {figure.metric: figure.outcome for figure in back.figures}["state_bytes"] == "better"
    fewer = make_run("adam", 800, batch=40)
    (fit,) = compare_documents(make_comparison(base), make_comparison(fewer), ("a", "b")).runs
    assert {figure.metric: figure.outcome for figure in fit.figures}["max_batch_size"] == "worse"


def test_nothing_in_common_exits_5_and_bad_files_2(inside: Command, pair: tuple[str, str], tmp_path: Path) -> None:
    make_comparison(make_run("lion", 4)).save(tmp_path / "lion.json")
    done = inside("diff", pair[0], "lion.json")
    assert done.returncode == 5
    assert done.stderr == "error: old.json and lion.json have no optimizer in common\n"
    assert inside("diff", pair[0], "none.json").returncode == 2
    (tmp_path / "cut.json").write_text('{"schema": ')
    assert inside("diff", pair[0], "cut.json").returncode == 2
