"""SM3, the memory-efficient adaptive optimizer (Anil, Gupta, Koren, Singer, NeurIPS 2019), for PyTorch."""

from __future__ import annotations

from .averaging import averaging_bytes, polyak_average
from .covers import Blocks, Cover, Singleton, Slices, Union, Whole
from .index_sets import IndexSets
from .optimizer import SM3
from .schedules import warmup, warmup_cooldown

__all__ = [
    "SM3",
    "Blocks",
    "Cover",
    "IndexSets",
    "Singleton",
    "Slices",
    "Union",
    "Whole",
    "averaging_bytes",
    "polyak_average",
    "warmup",
    "warmup_cooldown",
]
