"""The random state of a training: the same for weights and for every batch, whether measured or predicted."""

from __future__ import annotations

import random
import sys

import torch

# Apart by large primes, so that no two batches of a job start from the same state.
_RANK, _BATCH = 1_000_003, 7_368_787


def seed_weights(seed: int) -> None:
    """Set the random state in which the model is built.

    Args:
        seed: The seed of the recipe.
    """
    _seed_all(seed)


def seed_batch(seed: int, rank: int, number: int) -> None:
    """Set the random state in which a batch is made and trained on.

    It depends on nothing that was drawn before. So a prediction, which makes no weights and no dropout masks, sees the
    batches that a measured training sees.

    Args:
        seed: The seed of the recipe.
        rank: The rank that trains on the batch.
        number: The number of the batch on this rank, from 1.
    """
    _seed_all(seed + rank * _RANK + number * _BATCH)


def _seed_all(seed: int) -> None:
    """Seed PyTorch, Python's `random`, and numpy if the program has imported it."""
    torch.manual_seed(seed % 2**64)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
