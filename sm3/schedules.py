"""Learning rates for SM3: warm-up, constant part and cool-down, as `torch.optim.lr_scheduler` objects.

SM3's accumulators are sums, so its step sizes fall by themselves and no decay is needed. The authors advise a warm-up
over about 5 % of the steps and, in place of averaging the weights, a linear cool-down to zero over the last 10 %
(google-research/sm3, README). The README's formula for the warm-up, `min(1, (warm_up / global_step) ** p)`, has its
ratio upside down: it would begin infinitely large. This module uses `min(1, (step / warm_up) ** p)`.
"""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_factor(step: int, warmup_steps: int, power: float = 2.0) -> float:
    """Return min(1, (step / warmup_steps) ** power), the factor of the learning rate in a step of the warm-up.

    Args:
        step: the number of the step, counted from 1.
        warmup_steps: the number of steps that the warm-up takes; 0 for no warm-up.
        power: 1 for a linear warm-up, 2 for a quadratic one.

    Returns:
        A share of the full learning rate, between 0 and 1.
    """
    return min(1.0, (step / warmup_steps) ** power) if warmup_steps else 1.0


def cooldown_factor(step: int, total_steps: int, cooldown_steps: int) -> float:
    """Return the factor of the learning rate in a step: 1 at first, then falling linearly, 0 after the last step.

    Args:
        step: the number of the step, counted from 1.
        total_steps: the number of steps that the training takes.
        cooldown_steps: the number of steps that the cool-down takes; 0 for no cool-down.

    Returns:
        A share of the full learning rate, between 0 and 1.
    """
    if not cooldown_steps:
        return 1.0
    return min(1.0, max(0.0, (total_steps - step + 1) / (cooldown_steps + 1)))


def warmup(optimizer: Optimizer, warmup_steps: int, power: float = 2.0, last_epoch: int = -1) -> LambdaLR:
    """Return a scheduler that warms up the learning rate and then keeps it constant.

    Args:
        optimizer: any optimizer. Its `lr` is the full learning rate.
        warmup_steps: the number of steps that the warm-up takes; about 5 % of all steps is usual.
        power: 1 for a linear warm-up, 2 (the authors' advice) for a quadratic one.
        last_epoch: the same as in every scheduler of PyTorch.

    Raises:
        ValueError: the number of steps or the power is negative.
    """
    _at_least_zero(warmup_steps=warmup_steps, power=power)
    return LambdaLR(optimizer, lambda epoch: warmup_factor(epoch + 1, warmup_steps, power), last_epoch)


def warmup_cooldown(
    optimizer: Optimizer,
    total_steps: int,
    warmup_steps: int | None = None,
    cooldown_steps: int | None = None,
    power: float = 2.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Return a scheduler with a warm-up, a constant part, and a linear cool-down towards zero.

    Args:
        optimizer: any optimizer. Its `lr` is the full learning rate.
        total_steps: the number of steps that the training takes.
        warmup_steps: the number of steps that the warm-up takes; None for 5 % of all steps.
        cooldown_steps: the number of steps that the cool-down takes; None for the last 10 % of all steps.
        power: 1 for a linear warm-up, 2 (the authors' advice) for a quadratic one.
        last_epoch: the same as in every scheduler of PyTorch.

    Raises:
        ValueError: a number is negative, or warm-up and cool-down together are longer than the training.
    """
    warm = round(0.05 * total_steps) if warmup_steps is None else warmup_steps
    cool = round(0.1 * total_steps) if cooldown_steps is None else cooldown_steps
    _at_least_zero(total_steps=total_steps, warmup_steps=warm, cooldown_steps=cool, power=power)
    if warm + cool > total_steps:
        raise ValueError(f"{warm} steps of warm-up and {cool} of cool-down do not fit into {total_steps}")

    def factor(epoch: int) -> float:
        return warmup_factor(epoch + 1, warm, power) * cooldown_factor(epoch + 1, total_steps, cool)

    return LambdaLR(optimizer, factor, last_epoch)


def _at_least_zero(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, not {value}")
