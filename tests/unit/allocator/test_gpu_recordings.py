"""The files that a GPU's recordings go to; recorded histories stand in for a GPU here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memprof.allocator.replay_history import replay_history
from memprof.allocator.settings import parse_alloc_conf
from tests.data.allocator.programs import CAPACITY, HERE
from tests.data.allocator.record import unpack as unpack_training
from tests.gpu.recordings import Recording, pack, unpack

TRAINING = json.loads((HERE / "training.json").read_text())["runs"]


@pytest.mark.parametrize("run", TRAINING, ids=lambda run: f"{run['precision']} {run['conf']}")
def test_a_packed_history_replays_as_before(run: dict[str, Any]) -> None:
    history = [unpack_training(event) for event in run["events"]]
    packed = pack([*history, {"action": "snapshot", "addr": 0, "size": 0, "stream": 0}])
    assert len(packed) == len(history)
    done = replay_history(unpack(packed), parse_alloc_conf(run["conf"]), total_bytes=CAPACITY)
    assert done.exact
    assert done.report.peak_reserved_bytes == run["stats"]["peak_reserved"]
    assert done.report.peak_requested_bytes == run["stats"]["peak_requested"]


def test_streams_are_numbered_and_running_out_of_memory_has_no_address() -> None:
    history = [
        {"action": "alloc", "addr": 4096, "size": 10, "stream": 140_000},
        {"action": "oom", "size": 1 << 40, "stream": 150_000, "device_free": 1},
        {"action": "free_requested", "addr": 4096, "size": 10, "stream": 140_000},
    ]
    assert pack(history) == ["a 0 a 0", "! 0 10000000000 1", "f 0 a 0"]


def test_a_recording_is_whole_after_every_result_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"
    first = Recording(path, "x/1", {"gpu": "one"})
    assert "a" not in first
    first.keep("a", {"peak": 1})
    assert json.loads(path.read_text())["results"] == {"a": {"peak": 1}}
    again = Recording(path, "x/1", {"gpu": "one"})
    assert "a" in again
    again.keep("b", {"peak": 2})
    assert list(json.loads(path.read_text())["results"]) == ["a", "b"]
    assert [one.name for one in tmp_path.iterdir()] == ["peaks.json"]
    with pytest.raises(AssertionError, match="something else"):
        Recording(path, "y/1", {})
