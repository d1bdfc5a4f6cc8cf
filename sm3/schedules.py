"""Learning rates for SM3: warm-up, constant, cool-down, as ordinary `torch.optim.lr_scheduler` objects.

SM3's accumulators are sums, so its step sizes fall by themselves and no decay is needed; the authors advise a
warm-up over about 5 % of the steps and, in place of averaging the weights, a linear cool-down to zero over
the last 10 % (google-research/sm3, README). The formula printed there for the warm-up, `min(1, (warm_up /
global_step) ** p)`, has its ratio upside down: it begins infinitely large. Here it is `min(1, (step /
warm_up) ** p)`.
"""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_factor(step: int, warmup_steps: int, power: float = 2.0) -> float:
    """Return min(1, (step / warmup_steps) ** power), the share of the full learning rate in step 1, 2, ...

    Args:
        step: the number of the step, from 1.
        warmup_steps: how many steps the warm-up takes; 0 for none.
        power: 1 for linear, 2 for quadratic.
    """
    return min(1.0, (step / warmup_steps) ** power) if warmup_steps else 1.0


def cooldown_factor(step: int, total_steps: int, cooldown_steps: int) -> float:
    """Return the share of the learning rate in step 1, 2, ...: 1, then linearly down, 0 after the last."""
    if not cooldown_steps:
        return 1.0
    return min(1.0, max(0.0, (total_steps - step + 1) / (cooldown_steps + 1)))


def warmup(optimizer: Optimizer, warmup_steps: int, power: float = 2.0, last_epoch: int = -1) -> LambdaLR:
    """Return a scheduler that warms the learning rate up and then leaves it constant.

    Args:
        optimizer: any optimizer, its `lr` the full learning rate.
        warmup_steps: the steps until then; about 5 % of all of them.
        power: 1 for linear, 2 (the authors' advice) for quadratic.
        last_epoch: as in every scheduler of PyTorch.

    Raises:
        ValueError: a negative number of steps or power.
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
    """Return a scheduler with warm-up, a constant part, and a linear cool-down towards zero.

    Args:
        optimizer: any optimizer, its `lr` the full learning rate.
        total_steps: how many steps the training takes.
        warmup_steps: None for 5 % of them.
        cooldown_steps: None for the last 10 % of them.
        power: 1 for linear, 2 (the authors' advice) for quadratic warm-up.
        last_epoch: as in every scheduler of PyTorch.

    Raises:
        ValueError: negative numbers, or warm-up and cool-down together longer than the training.
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
