"""Parses `--input` and `--target`: each describes one tensor of a batch.

    [NAME=]DTYPE[DIM,...][<N]

- `DTYPE` is the name of a torch dtype: `float32`, `bfloat16`, `int64`, `bool`, `complex64` ...
- `DIM` is a positive int, or `B` for the batch size; `[]` is a scalar.
- `<N` draws integers from 0 to N-1. Without it they are 0 or 1, which every table and every loss accepts.
- `NAME=` passes the tensor to the model as that keyword. Without it the tensor is passed by position.

Examples: `float32[B,3,224,224]`, `int64[B,128]<50257`, `input_ids=int64[B,128]<50257`. Spaces are ignored.
Floating-point and complex tensors are drawn from the standard normal distribution.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memprof.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
INT_BITS = {"uint8": 8, "int8": 7, "int16": 15, "int32": 31, "int64": 63}
DTYPES = (*FLOATS, *INT_BITS, "bool")

_SHAPE = re.compile(r"(?:(?P<name>[^=\[\]<]*)=)?(?P<dtype>\w+)\[(?P<dims>[^\[\]]*)\](?:<(?P<below>.*))?")
_INT = re.compile(r"\d+(_\d+)*")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a batch.

    Attributes:
        dtype: The name of the torch dtype.
        dims: The sizes of the dimensions; None stands for the batch size.
        below: The exclusive upper bound of an integer tensor's values, or None.
        name: The keyword of the model, or None if the tensor is passed by position.
    """

    dtype: str
    dims: tuple[int | None, ...]
    below: int | None = None
    name: str | None = None

    def __str__(self) -> str:
        """Return the text that `parse_tensor` turns into this spec."""
        dims = ",".join("B" if dim is None else str(dim) for dim in self.dims)
        name = "" if self.name is None else f"{self.name}="
        return f"{name}{self.dtype}[{dims}]" + ("" if self.below is None else f"<{self.below}")

    def shape(self, batch_size: int) -> tuple[int, ...]:
        """Return the shape for a batch size."""
        return tuple(batch_size if dim is None else dim for dim in self.dims)

    def draw(self, batch_size: int) -> Tensor:
        """Return a tensor of random values, of shape `self.shape(batch_size)`."""
        import torch

        dtype = getattr(torch, self.dtype)
        if self.dtype in FLOATS:
            return torch.randn(self.shape(batch_size), dtype=dtype)
        return torch.randint(self.below or 2, self.shape(batch_size), dtype=dtype)


def parse_tensor(text: str, option: str = "--input") -> TensorSpec:
    """Parse the description of one tensor.

    Args:
        text: The description.
        option: The command-line option that it comes from, for error messages.

    Returns:
        The tensor.

    Raises:
        UsageError: The text does not follow the grammar, its dtype is unknown, or its bound does not suit the dtype.
    """
    match = _SHAPE.fullmatch("".join(text.split()))
    if match is None:
        raise UsageError(f"{option} {text!r} is not DTYPE[DIM,...], for example 'float32[B,3,224,224]'")
    name, dtype, dims, below = match["name"], match["dtype"], match["dims"], match["below"]
    if name is not None and not name.isidentifier():
        raise UsageError(f"{option} {text!r}: {name!r} cannot be a keyword of the model")
    if dtype not in DTYPES:
        raise UsageError(f"{option} {text!r}: there is no dtype {dtype!r}{did_you_mean(dtype, list(DTYPES))}")
    sizes = tuple(_dim(dim, text, option) for dim in dims.split(",")) if dims else ()
    return TensorSpec(dtype, sizes, None if below is None else _bound(below, dtype, text, option), name)


def _dim(dim: str, text: str, option: str) -> int | None:
    if dim == "B":
        return None
    if not _INT.fullmatch(dim) or int(dim) < 1:
        raise UsageError(f"{option} {text!r}: a dimension is a positive int, or B for the batch size, not {dim!r}")
    return int(dim)


def _bound(below: str, dtype: str, text: str, option: str) -> int:
    if dtype not in INT_BITS:
        raise UsageError(f"{option} {text!r}: only integers have a bound; drop <{below}")
    if not _INT.fullmatch(below) or int(below) < 1:
        raise UsageError(f"{option} {text!r}: the bound is a positive int, not {below!r}")
    most = 2 ** INT_BITS[dtype]
    if int(below) > most and dtype != "int64":
        raise UsageError(f"{option} {text!r}: {dtype} holds no more than {most - 1}; use int64")
    if int(below) >= most and dtype == "int64":  # the bound itself must be an int64
        raise UsageError(f"{option} {text!r}: int64 bounds end at {most - 1}")
    return int(below)


def parse_inputs(texts: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    """Parse the inputs of a model.

    Args:
        texts: The descriptions, one for each tensor.

    Returns:
        The tensors. At least one has the batch size in its shape, and no name occurs twice.

    Raises:
        UsageError: A description does not follow the grammar, no shape has the batch size, or a name occurs twice.
    """
    specs = tuple(parse_tensor(text) for text in texts)
    if specs and not any(None in spec.dims for spec in specs):
        raise UsageError(f"no --input has the batch size in its shape; write B for it, not {texts[0]!r}")
    names = [spec.name for spec in specs if spec.name is not None]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--input {name}= is given twice; keep one")
    return specs
