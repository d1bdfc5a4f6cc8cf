"""Runs PyTorch's own caching allocator on memory that is not there, and prints what it did.

Started with `fake_cuda.c` preloaded, by a Python with a CUDA build of torch; reads programs as JSON lines from stdin
and answers each with one line. A program is {"conf", "fraction", "ops"}; an operation is ["alloc", size, stream],
["free", number of the allocation], ["touch", number] (used on another stream), ["wait"] (for that stream: what was
freed meanwhile is available from the next request on) or ["empty"]. All of a program's memory goes back in the end.
A setting that this version of PyTorch does not have is answered with {"refused"}.
The answer has the history as PyTorch records it, and at which of its events the cache was emptied by ["empty"].
"""

from __future__ import annotations

import ctypes
import json
import sys

import torch

# Options that stay as they were unless they are named again; older versions refuse the first two.
DEFAULTS = ("large_segment_size_mb:20", "max_non_split_rounding_mb:20", "expandable_segments:False")


def main() -> None:
    torch.cuda.init()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


def run(program: dict) -> dict:
    for conf in (*DEFAULTS, program["conf"]):
        try:
            set_conf(conf)
        except (RuntimeError, ValueError):
            if conf not in DEFAULTS:
                return {"refused": conf}
    if program["fraction"] is not None:
        torch.cuda.set_per_process_memory_fraction(program["fraction"])
    torch.cuda.memory._record_memory_history(context=None, max_entries=10**7)
    torch.cuda.reset_peak_memory_stats()
    live: dict[int, torch.UntypedStorage] = {}
    streams = [torch.cuda.default_stream(), torch.cuda.Stream()]
    emptied = []
    for number, operation in enumerate(program["ops"]):
        if operation[0] == "empty":
            emptied.append(len(recorded()))
        step(number, operation, live, streams)
    busy(False)
    answer = report(streams) | {"emptied": emptied}
    live.clear()
    torch.cuda.empty_cache()
    torch.cuda.memory._record_memory_history(enabled=None)
    return answer


def set_conf(conf: str) -> None:
    if hasattr(torch._C, "_accelerator_setAllocatorSettings"):
        torch._C._accelerator_setAllocatorSettings(conf)
    else:  # before 2.10
        torch.cuda.memory._set_allocator_settings(conf)


def step(number: int, operation: list, live: dict[int, torch.UntypedStorage], streams: list[torch.cuda.Stream]) -> None:
    if operation[0] == "alloc":
        with torch.cuda.stream(streams[operation[2]]):
            try:
                live[number] = torch.UntypedStorage(operation[1], device="cuda")
            except torch.OutOfMemoryError:
                return
    elif operation[0] == "free":
        live.pop(operation[1], None)
    elif operation[0] == "touch" and operation[1] in live:
        busy(True)
        third = torch.cuda.ExternalStream(0x77770)
        torch.empty(0, dtype=torch.uint8, device="cuda").set_(live[operation[1]]).record_stream(third)
    elif operation[0] == "wait":
        busy(False)
    elif operation[0] == "empty":
        torch.cuda.empty_cache()


def busy(state: bool) -> None:
    """Let the events of other streams be unfinished from now on, or finished."""
    ctypes.c_int.in_dll(ctypes.CDLL(None), "fake_cuda_busy").value = state


def report(streams: list[torch.cuda.Stream]) -> dict:
    stats = torch.cuda.memory_stats()
    figures = [
        (when, name) for when in ("current", "peak") for name in ("allocated", "requested", "active", "reserved")
    ]
    numbers = {stream.cuda_stream: number for number, stream in enumerate(streams)}
    return {
        "torch": torch.__version__,
        "stats": {f"{when}_{name}": stats[f"{name}_bytes.all.{when}"] for when, name in figures},
        "history": [
            {"action": one["action"], "addr": one.get("addr", 0), "size": one["size"], "stream": numbers[one["stream"]]}
            for one in recorded()
        ],
    }


def recorded() -> list[dict]:
    return [one for one in torch.cuda.memory._snapshot()["device_traces"][0] if one["action"] != "snapshot"]


if __name__ == "__main__":
    main()
