"""The recordings of a real GPU: one file of peaks, one of compact histories; each is written after every trial.

`peaks.json` holds measured runs with their predictions' errors; `histories.json` what the caching allocator did in a
loop that has nothing of memprof's measuring in it, an event as "action address size stream" in hexadecimal, addresses
counted from the lowest one and streams in order of appearance, with PyTorch's own peaks beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.data.allocator.record import LONG, SHORT

PEAKS_SCHEMA, HISTORIES_SCHEMA = "memprof.recorded-peaks/1", "memprof.recorded-histories/1"
STATS = ("allocated", "requested", "reserved")


class Recording:
    """A file of results under their keys, kept after each; what is in it already need not be done again."""

    def __init__(self, path: Path, schema: str, environment: Mapping[str, Any]) -> None:
        self._path = path
        self._document: dict[str, Any] = {"schema": schema, "environment": dict(environment), "results": {}}
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            assert kept["schema"] == schema, f"{path} is something else"
            self._document["results"] = kept["results"]

    def __contains__(self, key: str) -> bool:
        return key in self._document["results"]

    def keep(self, key: str, result: Any) -> None:
        """Add a result and write the file, whole or not at all."""
        self._document["results"][key] = result
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._document, indent=0) + "\n", encoding="utf-8")
        partial.replace(self._path)


def pack(history: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the events of a history as short texts."""
    known = [event for event in history if event["action"] in SHORT]
    lowest = min((event["addr"] for event in known if event["action"] != "oom"), default=0)
    streams: dict[int, int] = {}
    packed = []
    for event in known:
        stream = streams.setdefault(event["stream"], len(streams))
        address = 0 if event["action"] == "oom" else event["addr"] - lowest
        packed.append(f"{SHORT[event['action']]} {address:x} {event['size']:x} {stream:x}")
    return packed


def unpack(events: Iterable[str]) -> list[dict[str, Any]]:
    """Return the history again; its lowest address is 1 TiB."""
    found = []
    for text in events:
        action, address, size, stream = text.split()
        place = {"addr": (1 << 40) + int(address, 16), "size": int(size, 16), "stream": int(stream, 16)}
        found.append({"action": LONG[action], **place})
    return found


def bare_history(workload: str, knobs: Mapping[str, Any], optimizer: str, precision: str, batch_size: int) -> Any:
    """Train two steps on the CUDA device in a loop of its own; return the packed history and PyTorch's peaks.

    To be called in a fresh process.
    """
    import torch

    from memprof.documents.optimizer_spec import parse_optimizer
    from memprof.documents.recipe import Recipe
    from memprof.documents.workload_spec import WorkloadSpec
    from memprof.measurement.record.cuda_history import start_history, stop_history
    from memprof.optimizers.registry import build_optimizer
    from memprof.training.step import TrainingStep
    from memprof.workloads.loader import load_workload

    torch.cuda.init()
    start_history()
    torch.manual_seed(0)
    made = load_workload(WorkloadSpec(model=workload, knobs=dict(knobs))).workload
    model = made.model().to("cuda").train()
    built = build_optimizer(parse_optimizer(optimizer), list(model.named_parameters()))
    recipe = Recipe(precision=precision)  # type: ignore[arg-type]  # a name of the table below
    step = TrainingStep(made, model, built, recipe, torch.device("cuda"), batch_size, lambda phase: None)
    for _ in range(2):
        step.run()
        torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    peaks = {name: stats[f"{name}_bytes.all.peak"] for name in STATS}
    return {"peaks": peaks, "events": pack(stop_history(torch.cuda.current_device()))}
