"""The convolutions of the measured CNNs as cuDNN sees them, and predictions under other rules for what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from memprof.devices.target import Target
from memprof.prediction.cuda.kernels import convolution as table
from memprof.trace.events import SizeLimits

# Where a convolution's stride, padding and dilation stand among an operator's arguments.
_GEOMETRY = {"_forward": slice(3, 6), "_backward": slice(4, 7)}


@dataclass(frozen=True)
class Convolution:
    """One convolution in float32, one of its three passes.

    Attributes:
        which: `forward`, `input gradient` or `weight gradient`.
        image, weight, output: shapes.
        padding, stride, dilation: by dimension.
        groups: of channels.
        channels_last: how the operands lie.
    """

    which: table.Pass
    image: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    channels_last: bool

    @property
    def depthwise(self) -> bool:
        """One channel in each group."""
        return self.groups > 1 and self.groups == self.image[1]

    @property
    def text(self) -> str:
        """Return it as one line, the same for the same convolution."""
        shapes = (self.image, self.weight, self.output, self.padding, self.stride, self.dilation)
        layout = "NHWC" if self.channels_last else "NCHW"
        return " ".join((self.which, *("x".join(map(str, shape)) for shape in shapes), str(self.groups), layout))


@dataclass(frozen=True)
class Plan:
    """A plan of cuDNN's.

    Attributes:
        engine: its number.
        tensor_cores: it computes in TF32.
        workspace_bytes: what it takes.
    """

    engine: int
    tensor_cores: bool
    workspace_bytes: int


# Bytes that a convolution takes on a target, where `memprof.prediction.cuda.kernels.convolution` says the third.
Rule = Callable[[Convolution, Target, int], int]


@contextmanager
def convolutions_take(rule: Rule) -> Iterator[None]:
    """Within the `with` block predictions follow the rule."""
    names = ("_forward", "_backward", "_workspace")
    before = {name: getattr(table, name) for name in names}
    geometry: list[Sequence[Sequence[int]]] = []

    def noting(name: str) -> Callable[..., Any]:
        def run(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            geometry[:] = [[table.per_dimension(values, args[1]) for values in args[_GEOMETRY[name]]]]
            return before[name](target, args, kwargs)

        return run

    def workspace(
        target: Target, which: table.Pass, image: Tensor, weight: Tensor, output: Sequence[int], groups: int
    ) -> list[tuple[int, SizeLimits]]:
        stride, padding, dilation = (tuple(values) for values in geometry[0])
        shapes = tuple(image.shape), tuple(weight.shape), tuple(output)
        last = table.is_channels_last(image)
        by_table = sum(size for size, _ in before["_workspace"](target, which, image, weight, output, groups))
        size = max(1, rule(Convolution(which, *shapes, padding, stride, dilation, groups, last), target, by_table))
        return [(size, SizeLimits(0, size, table.SOURCE))]

    for name in names:
        setattr(table, name, workspace if name == "_workspace" else noting(name))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(table, name, function)
