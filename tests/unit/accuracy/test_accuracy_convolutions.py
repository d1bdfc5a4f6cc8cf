"""What the report on convolutions rests on: convolutions as cuDNN sees them, and rules in place of the table."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from memprof.devices.target import Target
from memprof.trace.events import Allocation
from tests.accuracy.xmem.convolutions import Convolution, convolutions_take
from tests.accuracy.xmem.plans import answers
from tests.unit.prediction.test_cuda_semantics import AMPERE, cuda


def taken() -> list[int]:
    """Return the convolution's blocks of a step through one convolution."""
    with cuda(AMPERE) as mode:
        image = torch.empty(2, 8, 10, 12).requires_grad_()
        weight = torch.empty(6, 4, 3, 1).requires_grad_()
        output = F.conv2d(image, weight, padding=(1, 0), stride=(2, 1), groups=2)
        output.backward(torch.empty_like(output))
    return [e.size for e in mode.log.entries(0) if isinstance(e, Allocation) and e.range is not None]


def test_a_rule_sees_every_pass_and_decides_what_it_takes() -> None:
    seen: list[Convolution] = []

    def rule(convolution: Convolution, target: Target, by_table: int) -> int:
        seen.append(convolution)
        return 1000 * len(seen)

    before = taken()
    with convolutions_take(rule):
        assert taken() == [1000, 2000, 3000]
    assert taken() == before
    shapes = ((2, 8, 10, 12), (6, 4, 3, 1), (2, 6, 5, 12))
    for which, convolution in zip(("forward", "input gradient", "weight gradient"), seen, strict=True):
        assert convolution == Convolution(which, *shapes, (1, 0), (2, 1), (1, 1), 2, False)  # type: ignore[arg-type]
    assert seen[0].text == "forward 2x8x10x12 6x4x3x1 2x6x5x12 1x0 2x1 1x1 2 NCHW"
    assert not seen[0].depthwise


def test_a_rule_may_leave_it_to_the_table() -> None:
    before = taken()
    with convolutions_take(lambda convolution, target, by_table: by_table):
        assert taken() == before


def test_the_table_is_put_back_after_an_error() -> None:
    before = taken()
    try:
        with convolutions_take(lambda *_: 1 // 0):
            taken()
    except ZeroDivisionError:
        pass
    assert taken() == before
    assert set(taken()) == {1}


def test_cudnns_answers_as_they_were_read() -> None:
    """The first convolution of MnasNet and MobileNetV2: no tensor cores first; theirs lay out input and output anew."""
    document = answers()
    assert document["version"] == "9.8.0"
    plans = document["rtx-3060"]["forward 200x3x86x86 32x3x3x3 200x32x43x43 1x1 2x2 1x1 1 NCHW"]
    assert plans[0] == [34, 0, 11136]
    copies = 200 * 4 * (4 * 86 * 86 + 32 * 43 * 43)
    assert copies <= next(size for engine, _, size in plans if engine == 53) < copies * 1.001


def test_cudnn_answers_as_it_did() -> None:
    """Where the cuDNN that was asked is installed."""
    from tests.accuracy.xmem import cudnn

    try:
        version = cudnn.version()
    except (ModuleNotFoundError, OSError) as error:
        pytest.skip(str(error))
    if version != answers()["version"]:
        pytest.skip(f"cuDNN {version}")
    stem = Convolution("forward", (200, 3, 86, 86), (32, 3, 3, 3), (200, 32, 43, 43), (1, 1), (2, 2), (1, 1), 1, False)
    found = [[plan.engine, int(plan.tensor_cores), plan.workspace_bytes] for plan in cudnn.plans(stem, "rtx-3060")]
    assert list(map(list, dict.fromkeys(map(tuple, found)))) == answers()["rtx-3060"][stem.text]
