"""What is said of the ranks beside the one that was predicted."""

from __future__ import annotations

import torch

from memprof.devices.target import Target
from memprof.documents.comparison import Peak, Rank
from memprof.prediction.fake.training import FakeRun

NCCL = (
    "NCCL's own memory (buffers for each communicator and peer) is not counted, nor therefore what the process takes: "
    "it lies outside PyTorch's allocator, and depends on NCCL's version, the links between the GPUs and its settings."
)
FIRST = (
    "Predicted is rank 0, whose shards are the largest: of what cannot be divided evenly the last ranks hold less, or "
    "nothing."
)


def ranks_of(fake: FakeRun, target: Target, peak: Peak) -> list[Rank]:
    """Return a line for each rank; none for a single one, and where the others hold less than the first."""
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
    """Return what the reader must know of a prediction for several ranks."""
    if fake.ranks == 1:
        return []
    return [*([] if fake.alike else [FIRST]), *([NCCL] if target.kind == "cuda" else [])]


def rank_basis(fake: FakeRun) -> list[str]:
    """Return what a prediction for several ranks rests on, beside what every one does."""
    if fake.ranks == 1:
        return []
    version = torch.__version__
    return [
        f"What ranks do for each other is PyTorch {version}'s own code, run as one of {fake.ranks} with nobody there."
    ]
