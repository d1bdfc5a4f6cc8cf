"""The inner loop over one tile: nu <- nu + g^2 and w <- w - rate g / sqrt(nu).

On the CPU it is PyTorch's own fused Adagrad, which makes one pass in vector instructions where ordinary operations take
seven. `torch._fused_adagrad_` is private, but `torch.optim.Adagrad(fused=True)` does nothing more than call it. It was
tested on torch 2.8, 2.13 and 2.15, and `rounding` tries it out once. If it is missing or does not round as it should,
and on every other device, ordinary operations do the same.

All tensors are float32, contiguous and of one shape.
"""

from __future__ import annotations

import math
import sys
from functools import cache

import torch
from torch import Tensor

from .scratch import Scratch

HIDDEN = 13
"""The exponent of a factor that makes a gradient vanish: the square of g 2**-13 is below half a unit in the last place
of g^2, so adding it changes nothing.
"""


@cache
def rounding() -> str:
    """Return how often the fused Adagrad rounds when it adds a square.

    Compiled for processors with a fused multiply-add it rounds once. The native kernel is compiled to round as often.

    Returns:
        "once" or "twice", or "unknown" if the fused Adagrad must not be used.
    """
    return next((name for name in ("once", "twice") if all(_rounds(name, n) for n in (1, 3, 16, 61))), "unknown")


def _rounds(name: str, length: int) -> bool:
    """Try one length. Short ones take the scalar part of the loop, long ones the vector part and both."""
    numbers = torch.arange(1.0, 62.0)[-length:]
    weight, grad, nu = numbers.rsqrt(), (numbers * 0.37).sqrt(), numbers / 7
    wide = (grad.double().square() + nu).float() if name == "once" else nu + grad * grad
    expected = weight - (grad * 0.3) / wide.double().sqrt().float()
    try:
        _fused_adagrad(weight, grad, nu, 0.3)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(nu, wide) and torch.equal(weight, expected)


def _fused_adagrad(target: Tensor, grad: Tensor, nu: Tensor, rate: float) -> None:
    first = [torch.ones(())]  # the number of the step, which counts where the learning rate decays
    torch._fused_adagrad_(
        [target], [grad], [nu], first, lr=rate, lr_decay=0.0, weight_decay=0.0, eps=0.0, maximize=False
    )


def has_data(tensor: Tensor) -> bool:
    """Return False for meta and fake tensors, and True for all others.

    Args:
        tensor: any tensor.
    """
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    return not (tensor.is_meta or (fake is not None and isinstance(tensor, fake.FakeTensor)))


def _fuses(target: Tensor) -> bool:
    return target.is_cpu and (not has_data(target) or rounding() != "unknown")


def _fused(target: Tensor, grad: Tensor, nu: Tensor, rate: float | Tensor) -> None:
    if has_data(target):
        _fused_adagrad(target, grad, nu, float(rate))


def sum_and_descend(target: Tensor, grad: Tensor, nu: Tensor, rate: float | Tensor, scratch: Scratch) -> None:
    """Compute nu <- nu + g^2 and target <- target - rate g / sqrt(nu), both in place.

    Args:
        target: the values to update.
        grad: the gradient g.
        nu: the second moments, each positive from the start.
        rate: the learning rate.
        scratch: the source of temporaries.
    """
    if _fuses(target):
        _fused(target, grad, nu, rate)
    else:
        add_square(nu, grad, scratch)
        root = torch.sqrt(nu, out=scratch.take("root", nu))
        target.sub_(torch.mul(grad, rate, out=scratch.take("work", grad)).div_(root))


def add_square(nu: Tensor, grad: Tensor, scratch: Scratch) -> None:
    """Compute nu <- nu + g^2 in place, with the same bits as `sum_and_descend`.

    Args:
        nu: the second moments.
        grad: the gradient g.
        scratch: the source of temporaries.
    """
    work = scratch.take("work", grad)
    if _fuses(nu):
        _fused(work, grad, nu, 0.0)
    else:
        nu.add_(torch.mul(grad, grad, out=work))


def descend(target: Tensor, grad: Tensor, nu: Tensor, rate: float | Tensor, beta: float, scratch: Scratch) -> None:
    """Compute target <- target - rate g / sqrt(nu) in place.

    The fused Adagrad gets a gradient that is so small, and a rate that is so large, that its sum of squares does not
    change. Both factors are powers of two, hence exact (for |g| > 2**-89, or a lower limit if 1 - beta is small).

    Args:
        target: the values to update.
        grad: the gradient g.
        nu: the second moments, each at least (1 - beta) g^2. It is overwritten.
        rate: the learning rate.
        beta: the weight of the past in the second moments.
        scratch: the source of temporaries.
    """
    work = scratch.take("work", grad)
    if _fuses(target):
        factor = 2.0 ** (HIDDEN + math.ceil(-math.log2(1 - beta) / 2))
        _fused(target, torch.mul(grad, 1 / factor, out=work), nu, rate * factor)
    else:
        target.sub_(torch.mul(grad, rate, out=work).div_(nu.sqrt_()))
