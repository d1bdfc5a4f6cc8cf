"""SM3, the memory-efficient adaptive optimizer (Anil, Gupta, Koren, Singer, NeurIPS 2019), for PyTorch."""

from __future__ import annotations

from .covers import Blocks, Cover, Singleton, Slices, Union, Whole
from .optimizer import SM3

__all__ = ["SM3", "Blocks", "Cover", "Singleton", "Slices", "Union", "Whole"]
