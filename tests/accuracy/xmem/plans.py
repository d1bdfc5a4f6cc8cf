"""What stands between predictions and measured CNNs: hypotheses of what cuDNN takes, each tried on every run.

`python -m tests.accuracy.xmem.plans` writes `reports/convolutions.md`. `--ask` asks cuDNN 9.8 anew what it would take
(`tests/data/accuracy/cudnn_plans.json.gz`; see `cudnn.py` for the packages that needs).
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from string import Template

from memprof.allocator.caching import CachingAllocator
from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.devices.target import Target
from memprof.prediction.bounds import resized
from memprof.prediction.cuda.kernels import convolution as workspaces_convolution
from memprof.prediction.cuda.semantics import CudaSemantics
from memprof.prediction.fake.training import fake_runs
from memprof.prediction.replay_trace import replay_blocks
from memprof.trace.attribution import build_trace
from memprof.trace.events import Trace
from tests.accuracy.xmem import plans_report
from tests.accuracy.xmem.convolutions import Convolution, Rule, convolutions_take
from tests.accuracy.xmem.language_models import FULL
from tests.accuracy.xmem.lengths import STEPS
from tests.accuracy.xmem.predictions import TORCH, late, trial_of
from tests.accuracy.xmem.truth import DATA, Row, read_rows
from tests.accuracy.xmem.vision_models import torchvision_models

HERE = Path(__file__).parent
REPORT = Path(__file__).parents[3] / "reports" / "convolutions.md"
ANSWERS = DATA / "cudnn_plans.json.gz"
ADA = (8, 9)
SMALL = 11  # cuDNN 9.8 prefers tensor cores for most weight gradients of 1 x 1 convolutions up to there, for none above


@dataclass(frozen=True)
class Traced:
    """A measured run's training on fake tensors.

    Attributes:
        target: what it was predicted for.
        trace: of its allocations.
        convolutions: by block, with the bytes of the table.
    """

    target: Target
    trace: Trace
    convolutions: Mapping[int, tuple[Convolution, int]]


def main() -> None:
    """Ask if told to, try every hypothesis, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy.xmem.plans", description=__doc__)
    parser.add_argument("--ask", action="store_true", help="ask cuDNN anew")
    arguments = parser.parse_args()
    torchvision_models()
    traces = {row: _traced(row) for row in read_rows() if row.kind == "cnn" and not row.oom}
    if arguments.ask:
        _ask(traces)
    errors = {name: {row: _error(row, traced, rule) for row, traced in traces.items()} for name, rule in RULES.items()}
    template = Template((HERE / "convolutions.template.md").read_text(encoding="utf-8"))
    text = template.substitute(
        version=answers()["version"],
        hypotheses=plans_report.hypotheses(errors),
        left_out=plans_report.left_out(errors),
        classes=plans_report.classes(_plans_of(traces)),
        rows=plans_report.residuals(errors),
    )
    REPORT.write_text(text, encoding="utf-8")
    print(text)


def _traced(row: Row) -> Traced:
    found: list[tuple[Convolution, int]] = []

    def note(convolution: Convolution, target: Target, by_table: int) -> int:
        found.append((convolution, by_table))
        return len(found)  # the block's size tells which it is

    target = target_of(find_device(row.device), torch_version=TORCH)
    trial = trial_of(replace(row, truth_bytes=0), FULL)
    with convolutions_take(note):
        semantics = CudaSemantics(target)
        (run,) = fake_runs(trial.workload, [trial.optimizer], trial.recipe, trial.batch_size, semantics, STEPS)
    trace = build_trace(run.entries)
    numbered = {number: block for number, block in enumerate(trace.blocks) if block.range is not None}
    return Traced(target, trace, {number: found[block.size - 1] for number, block in numbered.items()})


def _error(row: Row, traced: Traced, rule: Rule) -> int:
    """Return by how many bytes too much is predicted."""
    sizes = {number: max(1, rule(one, traced.target, size)) for number, (one, size) in traced.convolutions.items()}
    allocator = CachingAllocator(traced.target.capacity_bytes, traced.target.allocator)
    replayed = replay_blocks(resized(traced.trace, sizes), allocator)
    return max(replayed.reserved.values()) + late(row) - row.truth_bytes


@cache
def answers() -> dict[str, dict[str, list[list[int]]]]:
    """Return cuDNN's answers: by GPU and convolution the plans, as engine, tensor cores and workspace."""
    document: dict[str, dict[str, list[list[int]]]] = json.loads(gzip.decompress(ANSWERS.read_bytes()))
    return document


def _ask(traces: Mapping[Row, Traced]) -> None:
    from tests.accuracy.xmem import cudnn

    document: dict[str, object] = {"version": cudnn.version()}
    for device, convolutions in _convolutions(traces).items():
        document[device] = {
            one.text: [
                [plan.engine, int(plan.tensor_cores), plan.workspace_bytes]
                for plan in dict.fromkeys(cudnn.plans(one, device))
            ]
            for one in convolutions
        }
    ANSWERS.write_bytes(gzip.compress(json.dumps(document, separators=(",", ":")).encode(), mtime=0))
    answers.cache_clear()


def _convolutions(traces: Mapping[Row, Traced]) -> dict[str, list[Convolution]]:
    """Return every convolution that goes to cuDNN, by GPU."""
    found: dict[str, dict[Convolution, None]] = {}
    for row, traced in traces.items():
        found.setdefault(row.device, {}).update(dict.fromkeys(one for one, _ in traced.convolutions.values()))
    return {device: list(convolutions) for device, convolutions in found.items()}


def _plans_of(traces: Mapping[Row, Traced]) -> dict[str, list[tuple[Convolution, list[list[int]]]]]:
    return {
        device: [(one, answers()[device][one.text]) for one in convolutions]
        for device, convolutions in _convolutions(traces).items()
    }


def _plans(convolution: Convolution, target: Target) -> list[list[int]]:
    return answers()[target.name][convolution.text]


def _nothing(convolution: Convolution, target: Target, by_table: int) -> int:
    return 0


def _by_table(convolution: Convolution, target: Target, by_table: int) -> int:
    return by_table


def _anew(convolution: Convolution, target: Target, by_table: int) -> int:
    """Everything by tensor cores, which lay out all three operands anew."""
    elements = _padded_elements(convolution)
    return 4 * sum(elements.values())


def _padded_elements(convolution: Convolution) -> Mapping[str, int]:
    image, output = convolution.image, convolution.output
    channels = {name: shape[1] // convolution.groups for name, shape in (("image", image), ("output", output))}
    grown = {name: -(-count // 4) * 4 / count for name, count in channels.items()}
    sizes = {"image": _count(image), "output": _count(output)}
    weight = _count(convolution.weight) * grown["image"] * grown["output"]
    return {**{name: round(size * grown[name]) for name, size in sizes.items()}, "weight": round(weight)}


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _first(convolution: Convolution, target: Target, by_table: int) -> int:
    return _plans(convolution, target)[0][2]


def _first_without_tensor_cores(convolution: Convolution, target: Target, by_table: int) -> int:
    return next((size for _, tensor_cores, size in _plans(convolution, target) if not tensor_cores), 0)


def _depthwise_takes_nothing(convolution: Convolution, target: Target, by_table: int) -> int:
    return 0 if convolution.depthwise else by_table


def _depthwise_laid_out_everywhere(convolution: Convolution, target: Target, by_table: int) -> int:
    laid_out = convolution.depthwise and convolution.which == "forward"
    return _anew(convolution, target, by_table) if laid_out else by_table


def _first_before_ada(*passes: workspaces_convolution.Pass) -> Rule:
    """cuDNN's first plan in the default layout before compute capability 8.9, for some passes; ours otherwise."""

    def rule(convolution: Convolution, target: Target, by_table: int) -> int:
        asked = target.capability < ADA and not convolution.channels_last and convolution.which in passes
        return _first(convolution, target, by_table) if asked else by_table

    return rule


def _small_weight_gradients(convolution: Convolution, target: Target, by_table: int) -> int:
    small = convolution.which == "weight gradient" and convolution.image[2] <= SMALL
    if target.capability >= ADA or convolution.channels_last or not small:
        return by_table
    elements = _padded_elements(convolution)
    return 4 * (elements["image"] + elements["output"])


def _early_workspace(mib: float) -> Rule:
    """The forward pass of the first convolution, that of the three colours, takes so much for each image."""

    def rule(convolution: Convolution, target: Target, by_table: int) -> int:
        first = convolution.which == "forward" and convolution.image[1] == 3
        return round(mib * 2**20 * convolution.image[0]) if first and target.capability < ADA else by_table

    return rule


_BEFORE = "as the table, but cuDNN 9.8's first plan before compute capability 8.9 (default layout)"
RULES: dict[str, Rule] = {
    "nothing": _nothing,
    "**the table** (`workspaces_convolution.py`)": _by_table,
    "the table, depthwise takes nothing": _depthwise_takes_nothing,
    "the table, depthwise forward laid out anew on every GPU": _depthwise_laid_out_everywhere,
    "all operands anew (tensor cores everywhere)": _anew,
    "cuDNN 9.8's first plan": _first,
    "cuDNN 9.8's first plan without tensor cores": _first_without_tensor_cores,
    f"{_BEFORE}: forward": _first_before_ada("forward"),
    f"{_BEFORE}: input gradients": _first_before_ada("input gradient"),
    f"{_BEFORE}: weight gradients": _first_before_ada("weight gradient"),
    f"{_BEFORE}: all three": _first_before_ada("forward", "input gradient", "weight gradient"),
    "as the table, but 1.95 MiB per image for the first convolution before 8.9": _early_workspace(1.95),
    plans_report.EARLY: _early_workspace(2.043),
    f"as the table, but weight gradients up to {SMALL} x {SMALL} by tensor cores before 8.9": _small_weight_gradients,
}


if __name__ == "__main__":
    main()
