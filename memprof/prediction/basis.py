"""Sentences on what a prediction rests on, and on what it had to guess."""

from __future__ import annotations

import torch

from memprof.devices.context import LATE_WITHIN_BYTES
from memprof.devices.target import Target
from memprof.documents.comparison import Peak, Rank
from memprof.documents.confidence import Confidence, SizeRange
from memprof.prediction.accuracy import accuracy
from memprof.prediction.bounds import Bounds
from memprof.prediction.fake.training import FakeRun
from memprof.trace.events import Trace
from memprof.units import format_size

_ATTENTION = {
    "aten::_scaled_dot_product_flash_attention": "flash attention",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient attention",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN attention",
}
_CONVOLUTIONS = "aten::convolution"
# The operators of these namespaces are PyTorch's or sm3's own, which the tables of `memprof.prediction.cuda` know.
_OWN_NAMESPACES = ("aten", "prim", "prims", "sm3", "fsdp", "profiler", "_c10d_functional", "_dtensor")


def confidence_of(trace: Trace, fake: FakeRun, target: Target, bounds: Bounds | None) -> Confidence:
    """Return what the prediction of a run that fits the device rests on.

    Args:
        trace: The trace of the fake training.
        fake: The fake training.
        target: The device of the prediction.
        bounds: The upper bounds of the allocator's figures; None for a CPU.
    """
    if bounds is None:
        return Confidence(
            basis=[*_cpu_basis(), *rank_basis(fake)], warnings=[*_guesses(fake), *_foreign_operators(trace)]
        )
    warnings = [*_guesses(fake), *_foreign_operators(trace), *_cudnn(trace, bounds), *_tight(bounds, target)]
    return Confidence(
        basis=[*_cuda_basis(trace, target), *rank_basis(fake)],
        warnings=warnings,
        ranges=[*bounds.ranges, *_context_range(target)],
    )


def _operators(trace: Trace) -> set[str]:
    return set().union(*trace.operators.values())


def _cpu_basis() -> list[str]:
    return [
        "Every tensor of the training step on fake tensors; the same step function as when measuring.",
        "What kernels take for themselves is recorded on this machine's CPU, each kernel run once on zeros.",
        "Nothing is stated of how far kernels' own memory on another CPU may differ, so there is no upper bound.",
    ]


def _cuda_basis(trace: Trace, target: Target) -> list[str]:
    steps = trace.spans[-1].step
    version = ".".join(map(str, target.torch_version))
    capability = ".".join(map(str, target.capability))
    rule = f"by PyTorch {version}'s rules for compute capability {capability}"
    kernels = [name for operator, name in _ATTENTION.items() if operator in _operators(trace)]
    found = [
        f"Every tensor of {steps} training steps on fake tensors, replayed through a model of PyTorch's caching "
        "allocator that repeats recordings of the real one byte for byte.",
        f"Which kernels run is decided {rule}{f': {chr(44).join(kernels)}' if kernels else ''}.",
        "What kernels take for themselves comes from a table read off PyTorch's sources.",
    ]
    if target.generic:
        found.append("A size stands for a generic device: apart from its memory it is taken to be an A100.")
    if target.context_bytes is not None:
        high = format_size(max(target.context_range_bytes[1], target.context_bytes), 0)
        context = format_size(target.context_bytes, 0)
        late = format_size(target.late_bytes, 0)
        found.append(
            f"The process is what is reserved, the CUDA context (estimated at {context}, at most {high}) and what is "
            f"loaded after it ({late})."
        )
    checked = accuracy()
    if checked is not None:
        errors = ", ".join(f"{one.name} {100 * one.median_error:.2g} %" for one in checked.families)
        found.append(f"Median error on measured runs: {errors} (`memprof doctor` says whose).")
    return found


def _context_range(target: Target) -> list[SizeRange]:
    if target.context_bytes is None:
        return []
    low, high = target.context_range_bytes
    return [
        SizeRange(
            what="CUDA context",
            layer="process",
            low_bytes=min(low, target.context_bytes),
            bytes=target.context_bytes,
            high_bytes=max(high, target.context_bytes),
            source=target.context_source,
        ),
        SizeRange(
            what="kernels and handles loaded late",
            layer="process",
            low_bytes=0,
            bytes=target.late_bytes,
            high_bytes=target.late_bytes + LATE_WITHIN_BYTES,
            source="measured above the bare context on three GPUs (memprof/devices/context.py)",
        ),
    ]


def _guesses(fake: FakeRun) -> list[str]:
    """Name the operators that read a value which only real data has, and everything else that was guessed."""
    phases: dict[str, list[str]] = {}
    for operator, phase in sorted(fake.assumed):
        if phase != "build":
            phases.setdefault(phase, []).append(operator)
    reads = [
        f"The step reads values that a prediction does not have ({', '.join(operators)} in the {phase} phase): "
        "they were assumed."
        for phase, operators in phases.items()
    ]
    return [*reads, *sorted(fake.guesses)]


def _foreign_operators(trace: Trace) -> list[str]:
    """Name the operators of other libraries, whose fake kernels show their outputs but not their scratch memory."""
    foreign = sorted(name for name in _operators(trace) if name.partition("::")[0] not in _OWN_NAMESPACES)
    modules: dict[str, str] = {}
    for block in trace.blocks:
        if block.operator in foreign and block.module:
            modules.setdefault(block.operator, block.module)
    places = [f"{name} in {modules[name]}" if name in modules else name for name in foreign]
    return [f"{place}: its outputs are known, what its kernel takes for itself is not." for place in places]


def _cudnn(trace: Trace, bounds: Bounds) -> list[str]:
    ranged = any("cudnn" in one.what.lower() for one in bounds.ranges)
    if ranged or _CONVOLUTIONS not in _operators(trace):
        return []
    return [f"{_CONVOLUTIONS}: what cuDNN takes for a convolution is its own choice; no workspace is counted."]


def _tight(bounds: Bounds, target: Target) -> list[str]:
    upper = max(bounds.reserved.values())
    if target.capacity_bytes is None or upper <= target.capacity_bytes:
        return []
    there = format_size(target.capacity_bytes)
    return [
        f"The upper bound, {format_size(upper)} reserved, is more than the {there} there: it may run out of memory."
    ]


NCCL = (
    "NCCL's own memory (buffers for each communicator and peer) is not counted, nor therefore what the process takes: "
    "it lies outside PyTorch's allocator, and depends on NCCL's version, the links between the GPUs and its settings."
)
FIRST = (
    "Predicted is rank 0, whose shards are the largest: of what cannot be divided evenly the last ranks hold less, or "
    "nothing."
)
ONE = "Predicted is rank {rank} of {ranks}; of the others nothing is said (`--rank` predicts another)."


def ranks_of(fake: FakeRun, target: Target, peak: Peak) -> list[Rank]:
    """Return a line for each rank. The list is empty for a single rank, and if other ranks hold less than the first.

    Args:
        fake: The fake training.
        target: The device of each rank.
        peak: The peak of each rank.
    """
    if fake.ranks == 1 or not fake.alike or fake.parameters is None or fake.state is None:
        return []
    return [
        Rank(
            rank=number,
            device=target.name,
            parameters_bytes=fake.parameters.bytes,
            state_bytes=fake.state.bytes,
            peak=peak,
        )
        for number in range(fake.ranks)
    ]


def rank_notes(fake: FakeRun, target: Target) -> list[str]:
    """Return the notes that a reader of a prediction for several ranks must know.

    Args:
        fake: The fake training.
        target: The device of each rank.
    """
    if fake.ranks == 1:
        return []
    whose = [] if fake.alike else [FIRST] if fake.alike is False else [ONE.format(rank=fake.rank, ranks=fake.ranks)]
    return [*whose, *([NCCL] if target.kind == "cuda" else [])]


def rank_basis(fake: FakeRun) -> list[str]:
    """Return what a prediction for several ranks rests on, beyond what every prediction rests on.

    Args:
        fake: The fake training.
    """
    if fake.ranks == 1:
        return []
    version = torch.__version__
    return [
        f"What ranks do for each other is PyTorch {version}'s own code, run as one of {fake.ranks} with nobody there: "
        "what the others send is taken to be what this one has."
    ]
