"""What was recorded on real GPUs (tests/data/h200) against the allocator's model and the predictions.

Each folder has the files of `python -m tests.gpu.record`; where none has been recorded yet, there is nothing to test.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from memprof.allocator.replay_history import replay_history
from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.documents.comparison import Run
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.run import predict_runs
from tests.gpu.recordings import unpack

DATA = Path(__file__).parents[1] / "data"


def recorded(name: str) -> list[Any]:
    """Return the results of every recorded file of a name, as parameters named after their keys."""
    found = []
    for path in sorted(DATA.glob(f"*/{name}.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("schema", "").startswith("memprof.recorded-"):
            for key, result in document["results"].items():
                result["environment"] = document["environment"]
                found.append(pytest.param(result, id=f"{path.parent.name}: {key}"))
    return found


@pytest.mark.parametrize("result", recorded("histories"))
def test_a_recorded_history_is_replayed_exactly(result: dict[str, Any]) -> None:
    memory = result["environment"]["gpu_memory_bytes"]
    done = replay_history(unpack(result["events"]), total_bytes=memory)
    assert done.differences == ()
    assert done.report.peak_reserved_bytes == result["peaks"]["reserved"]
    assert done.report.peak_allocated_bytes == result["peaks"]["allocated"]
    assert done.report.peak_requested_bytes == result["peaks"]["requested"]


def errors_of(results: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return the signed errors of allocated and reserved, of today's predictions for recorded runs."""
    found = []
    for result in results:
        measured = Run.model_validate(result["run"])
        if measured.status != "ok":
            continue
        environment, workload = result["environment"], result["workload"]
        target = target_of(find_device(environment["gpu"]), torch_version=environment["torch"])
        spec = WorkloadSpec(model=workload["model"], knobs=workload["knobs"])
        recipe, optimizer = Recipe(**result["recipe"]), parse_optimizer(measured.optimizer.spec)
        (run,) = predict_runs(spec, [optimizer], recipe, workload["batch_size"], target)
        found.append(
            (
                run.peak.allocated_bytes / measured.peak.allocated_bytes - 1,
                run.peak.reserved_bytes / measured.peak.reserved_bytes - 1,
            )
        )
    return found


SMALL = [one for one in recorded("peaks") if " b=4 " in str(one.id) or " b=8 " in str(one.id)]


@pytest.mark.skipif(not SMALL, reason="no peaks have been recorded on a GPU yet")
def test_predictions_of_recorded_peaks_stay_as_good_as_they_were() -> None:
    errors = errors_of([one.values[0] for one in SMALL])
    assert median(abs(allocated) for allocated, _ in errors) < 0.005
    assert median(abs(reserved) for _, reserved in errors) < 0.02
