"""The model against PyTorch's own allocator: recorded answers everywhere, live ones where a CUDA build of torch is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memprof.allocator.block_pools import AllocatorBlock
from memprof.allocator.caching import CachingAllocator, OutOfMemory
from memprof.allocator.driver import SimulatedDriver
from memprof.allocator.replay_history import HistoryReport, replay_history
from memprof.allocator.settings import AllocatorSettings, parse_alloc_conf
from tests.data.allocator.programs import CAPACITY, CONFS, HERE, cuda_python, random_operations, real_allocator
from tests.data.allocator.record import unpack

RECORDED = json.loads((HERE / "histories.json").read_text())
PROGRAMS = {f"{one['conf'] or 'defaults'} of {one['fraction']}": one for one in RECORDED["programs"]}
TRAINING = json.loads((HERE / "training.json").read_text())
LIVE_SEEDS = range(5)


def settings_of(program: Mapping[str, Any]) -> AllocatorSettings:
    return replace(parse_alloc_conf(program["conf"]), memory_fraction=program["fraction"])


def check(program: Mapping[str, Any], history: list[dict[str, Any]], stats: Mapping[str, int]) -> HistoryReport:
    done = replay_history(history, settings_of(program), total_bytes=CAPACITY)
    assert done.differences == ()
    assert done.exact
    assert done.segment_events > 0
    peaks = {name: getattr(done.report, f"peak_{name}_bytes") for name in ("allocated", "active", "reserved")}
    assert peaks == {name: stats[f"peak_{name}"] for name in peaks}
    assert done.report.peak_requested_bytes == stats["peak_requested"]
    return done


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_recording_of_the_real_allocator_is_replayed_exactly(name: str) -> None:
    program = PROGRAMS[name]
    history = [unpack(event) for event in program["events"]]
    done = check(program, history, program["stats"])
    ran_out = [index for index, event in enumerate(history) if event["action"] == "oom"]
    assert done.report.out_of_memory_event == (ran_out[0] if ran_out else None)


@pytest.mark.parametrize("run", TRAINING["runs"], ids=lambda run: f"{run['precision']} {run['conf']}")
def test_training_steps_of_pytorch_s_cuda_code_are_replayed_exactly(run: dict[str, Any]) -> None:
    history = [unpack(event) for event in run["events"]]
    assert len(history) > 1000
    done = check({**run, "fraction": None}, history, run["stats"])
    assert not done.report.out_of_memory
    assert done.report.fragmentation_bytes > 0


def test_the_recordings_cover_what_can_happen() -> None:
    actions = {unpack(event)["action"] for program in PROGRAMS.values() for event in program["events"]}
    assert actions == {
        *("alloc", "free_requested", "free_completed", "oom"),
        *("segment_alloc", "segment_free", "segment_map", "segment_unmap"),
    }
    assert {program["conf"] for program in PROGRAMS.values()} == set(CONFS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_with_the_capacity_given_the_model_runs_out_of_memory_on_its_own(name: str) -> None:
    program = PROGRAMS[name]
    allocator = CachingAllocator(CAPACITY, settings_of(program), driver=SimulatedDriver(CAPACITY, falling=False))
    history = [unpack(event) for event in program["events"]]
    live: dict[int, AllocatorBlock] = {}
    for index, event in enumerate(history):
        for _ in range(program["emptied"].count(index)):
            allocator.empty_cache()
        if event["action"] == "alloc":
            live[event["addr"]] = allocator.allocate(event["size"], event["stream"])
        elif event["action"] == "oom":
            with pytest.raises(OutOfMemory):
                allocator.allocate(event["size"], event["stream"])
        elif event["action"] == "free_requested":
            allocator.free_later(live[event["addr"]])
        elif event["action"] == "free_completed" and live[event["addr"]].waiting:
            allocator.finish(live.pop(event["addr"]))
    stats = program["stats"]
    assert allocator.allocated_bytes == stats["current_allocated"]
    assert allocator.requested_bytes == stats["current_requested"]
    assert allocator.active_bytes == stats["current_active"]
    assert allocator.reserved_bytes == stats["current_reserved"]
    assert allocator.peak_reserved_bytes == stats["peak_reserved"]


def test_a_recording_that_differs_is_told_apart() -> None:
    program = PROGRAMS["defaults of None"]
    history = [unpack(event) for event in program["events"]]
    at = next(index for index, event in enumerate(history) if event["action"] == "segment_alloc" and index > 20)
    history[at]["size"] += 2**21
    done = replay_history(history, settings_of(program))
    assert not done.exact
    assert done.differences[0].event >= at
    assert f"segment_alloc of {history[at]['size']} B" in done.differences[0].real
    other = replay_history(
        [unpack(event) for event in program["events"]], AllocatorSettings(max_split_bytes=20 * 2**20)
    )
    assert not other.exact


def test_memory_that_came_back_while_waiting_for_other_streams_does_not_serve_the_request_that_waited() -> None:
    """`release_cached_blocks` waits and then asks the driver again, not the pool (`DeviceCachingAllocator::malloc`)."""
    five, large, small = 5 * 2**20, 2**40, 2**41
    events = [
        ("segment_alloc", large, 4 * five),
        *(("alloc", large + part * five, five) for part in range(4)),
        ("segment_alloc", small, 2**21),
        ("alloc", small, 512),
        ("free_requested", large, five),
        ("free_requested", small, 512),
        ("free_completed", small, 512),
        ("free_completed", large, five),  # found out while memory was short
        ("segment_free", small, 2**21),
        ("oom", 0, five),
        ("alloc", large, five),
    ]
    history = [{"action": action, "addr": place, "size": size, "stream": 0} for action, place, size in events]
    done = replay_history(history)
    assert done.differences == ()
    assert done.report.out_of_memory_event == events.index(("oom", 0, five))
    del history[-3]  # the model would have given the small segment back
    assert [one.real for one in replay_history(history).differences] == ["nothing"]


def test_private_pools_are_refused() -> None:
    event = {"action": "alloc", "addr": 1, "size": 512, "stream": 0, "pool_id": (0, 1)}
    with pytest.raises(ValueError, match="private pools"):
        replay_history([event])


@pytest.mark.slow
def test_the_real_allocator_live(tmp_path: Path) -> None:
    python = cuda_python()
    if python is None:
        pytest.skip("no CUDA build of torch here (or in MEMPROF_CUDA_TORCH), or no C compiler")
    for fraction in (None, 0.6):  # once a fraction is set, it stays
        with real_allocator(python, tmp_path) as run:
            for conf in CONFS:
                for seed in LIVE_SEEDS:
                    program = {"conf": conf, "fraction": fraction, "ops": random_operations(f"{seed}{conf}", 400)}
                    answer = run(program)
                    if "refused" in answer:
                        assert "large_segment_size_mb" in conf  # older versions do not have it
                        continue
                    old = tuple(map(int, answer["torch"].split(".")[:2])) <= (2, 8)
                    if not (old and ">" in conf):  # 2.8 read `>` in another way
                        check(program, answer["history"], answer["stats"])
