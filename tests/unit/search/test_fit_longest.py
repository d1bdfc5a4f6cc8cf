"""The largest batch holds for the longest samples: what workloads declare, who uses it, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import memprof
from memprof.devices.target import Target
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.report.content import fit as fits
from memprof.report.content.sections import fit_remark
from memprof.search.bracket import UNEVEN
from memprof.search.trace_cache import TraceCache
from memprof.workers.launcher import Launcher
from memprof.workloads.loader import LoadedWorkload, load_workload
from tests.data.models.lengths import LONGEST

DATA = Path(__file__).parents[2] / "data"
FILE = DATA / "models" / "lengths.py"
BUDGET = 16 << 20
OPTIONS: dict[str, Any] = {"optimizers": ["sgd"], "devices": ["cpu"], "budget": BUDGET, "confirm": False}


def load(model: str, **changes: Any) -> LoadedWorkload:
    return load_workload(WorkloadSpec(model=model, **changes))


@pytest.mark.parametrize("name", ["declared", "Tagger"])
def test_longest_batches_are_made_where_they_are_asked_for(name: str):
    """By a Workload, and by functions beside a plain module, with its knobs."""
    plain, longest = load(f"{FILE}:{name}"), load(f"{FILE}:{name}", longest=True)
    assert plain.lengths == longest.lengths == "longest_batch"
    assert plain.workload.batch(3)["ids"].shape[1] < LONGEST
    assert longest.workload.batch(3)["ids"].shape == (3, LONGEST)
    if name == "Tagger":
        made = load(f"{FILE}:Tagger", longest=True, knobs={"width": 1}).workload.batch(3)
        assert made["ids"].shape == (3, LONGEST + 1)


def test_what_is_known_of_lengths():
    assert load(f"{FILE}:undeclared", longest=True).lengths == "unknown"
    assert load("gpt2", longest=True).lengths == "fixed"
    assert load(f"{FILE}:Tagger", inputs=("int64[B,9]<100",), target="int64[B,9]<100").lengths == "fixed"


def test_longest_batch_that_is_no_function_is_refused(tmp_path: Path):
    text = "import torch\ndef make_batch(n):\n    return torch.ones(n, 2), torch.ones(n, 2)\nlongest_batch = 5\n"
    (tmp_path / "longest_five.py").write_text(f"{text}class Net(torch.nn.Linear):\n    pass\n")
    with pytest.raises(UsageError, match=r"longest_batch beside .* must be a function longest_batch\(batch_size\)"):
        load(f"{tmp_path / 'longest_five.py'}:Net", knobs={"in_features": 2, "out_features": 2})


def test_positions_of_a_configuration_are_told_and_not_taken():
    pytest.importorskip("transformers")
    config = DATA / "hf" / "gpt2"
    most = json.loads((config / "config.json").read_text())["n_positions"]
    loaded = load(f"hf:{config}", knobs={"seq_len": 16}, longest=True)
    assert (loaded.lengths, loaded.positions) == ("fixed", most)
    assert loaded.workload.batch(2)["input_ids"].shape == (2, 16)


def test_plain_batches_would_give_an_answer_that_runs_out_of_memory(launcher: Launcher):
    safe = memprof.fit(f"{FILE}:declared", **OPTIONS, launcher=launcher)
    unsafe = memprof.fit(f"{FILE}:undeclared", **OPTIONS, launcher=launcher)
    (good,), (bad,) = safe.cells, unsafe.cells
    assert bad.answer.value > good.answer.value
    assert UNEVEN in bad.answer.notes
    assert good.answer.notes == []
    assert "by its `longest_batch`" in " ".join(fits.sentences(safe))
    assert "give it a `longest_batch`" in " ".join(fits.sentences(unsafe))

    workload = WorkloadSpec(model=f"{FILE}:declared", longest=True)
    traces = TraceCache(workload, [parse_optimizer("sgd")], Recipe(), 8, Vary(), Target())
    for value, holds in ((good.answer.value, True), (good.answer.next_value, False), (bad.answer.value, False)):
        traces.add(value)
        assert traces.peak_within(0, value, BUDGET).fits is holds


def test_fit_columns_of_a_comparison_say_the_same(launcher: Launcher):
    expected = memprof.fit(f"{FILE}:declared", **OPTIONS, launcher=launcher).cells[0].answer
    trained = memprof.compare(
        f"{FILE}:declared", optimizers=["sgd"], device="cpu", budget=BUDGET, confirm=True, launcher=launcher
    )
    predicted = memprof.predict(
        f"{FILE}:declared", optimizers=["sgd"], device="cpu", budget=BUDGET, fit=True, launcher=launcher
    )
    assert trained.workload.lengths == "longest_batch"
    assert "with the longest batches that the workload declares" in (fit_remark(trained) or "")
    for comparison, method in ((trained, "confirmed"), (predicted, "predicted")):
        answer = comparison.runs[0].fit.batch_size
        assert answer.method == method
        assert answer.value == pytest.approx(expected.value, abs=1)  # how exact predictions are is tested elsewhere
        assert answer.next_value == answer.value + 1
        assert answer.peak_bytes > comparison.runs[0].peak.allocated_bytes
