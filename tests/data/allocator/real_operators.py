"""Runs the operator cases with PyTorch's CUDA code and prints what each allocated, in order, as JSON.

Started in the environment of `programs.without_gpu(..., null_gpu=True)`; nothing is computed, everything is allocated.
A history is "+bytes" for an allocation and "-n" for the end of the n-th; a case that PyTorch refuses is null.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from operator_cases import Case, cases


def history(case: Case) -> str | None:
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.memory._record_memory_history(context=None, max_entries=10**6)
    try:
        case()
    except (RuntimeError, AttributeError, TypeError, ValueError, NotImplementedError) as error:
        print(case, error, file=sys.stderr)
        return None
    finally:
        gc.collect()
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(enabled=None)
    numbers: dict[int, int] = {}
    events = []
    for event in trace:
        if event["action"] == "alloc":
            numbers[event["addr"]] = sum(text[0] == "+" for text in events)
            events.append(f"+{event['size']}")
        elif event["action"] == "free_requested" and event["addr"] in numbers:
            events.append(f"-{numbers.pop(event['addr'])}")
    return " ".join(events)


def main(prefix: str) -> None:
    torch.cuda.init()
    gc.collect()
    gc.freeze()  # what was imported need not be looked at after every case
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    found = {name: history(case) for name, case in cases().items() if name.startswith(prefix)}
    capability = "".join(map(str, torch.cuda.get_device_capability()))
    print(json.dumps({"torch": torch.__version__, "capability": capability, "cases": found}))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
