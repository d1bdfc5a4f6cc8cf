"""SM3: a torch optimizer whose state is one float32 number per row, column or other slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from .covers import Cover, GridCover, grid_shape
from .kernels import chunked
from .kernels.momentum import FloatMomentum, Momentum
from .kernels.task import MIN_EPS, Accumulator, Options, Scratch, Task
from .selection import CoverChoice, cover_of, named_cover
from .validation import check_group, momentum_dtype_name


class SM3(Optimizer):
    r"""The optimizer of Anil, Gupta, Koren, Singer, "Memory-Efficient Adaptive Optimization", NeurIPS 2019.

    For a cover {S_r} of a parameter's indices, SM3-II does, in each step,

        nu(i)  <- min_{r: i in S_r} mu(r) + g(i)^2
        w(i)   <- w(i) - lr g(i) / sqrt(nu(i))            (0 / 0 = 0)
        mu(r)  <- max_{i in S_r} nu(i)

    By default the sets are the codimension-1 slices, so a parameter of shape (n_1, ..., n_k), k >= 2, has
    4 (n_1 + ... + n_k) bytes of state; tensors of rank 0 and 1 have one accumulator per entry (diagonal
    Adagrad). Accumulators are float32 whatever the parameter's dtype. Nothing else is kept without momentum.
    State is created in the first step. A step takes O(numel) time and, beside the state, less than 4 MiB of
    temporaries.

    Args:
        params: parameters, groups, or the pairs of `model.named_parameters()`.
        lr: the learning rate, a float or a one-element tensor. Without momentum and beta, the first step of
            every coordinate with a gradient has this size; the denominator grows, so there is no need of a
            decay, but warm-up helps (`sm3.warmup`).
        momentum: weight of the past in the average of the preconditioned gradient, m <- momentum m + (1 -
            momentum) g / sqrt(nu), as in the authors' code. 0, the default, keeps no buffer; otherwise it is
            one number per entry.
        beta: 0 sums squares as in the paper; otherwise they are averaged, nu <- beta min mu + (1 - beta) g^2,
            and decay.
        eps: floor of the denominator: the update is g / max(sqrt(nu), eps). The default, 2**-63, is the least
            there is; it alters no gradient above 1.1e-19 and makes 0 / 0 = 0.
        weight_decay: decoupled weight decay, w <- (1 - lr weight_decay) w.
        maximize: ascend instead.
        variant: "II" or "I". SM3-I, mu(r) <- mu(r) + max g^2 over S_r and nu = min mu, has larger nu and
            takes two passes.
        momentum_dtype: `torch.float32`, `torch.bfloat16` or `torch.int8` (or these names).
        cover: which indices share an accumulator: a name ("slices", "rows", "singleton", "whole"), a
            `sm3.covers.Cover`, or a mapping from name patterns ("*.embed*") or parameters to either.

    Raises:
        ValueError: an option out of its range, or a cover that misses an index.
        TypeError: a complex parameter.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float = 0.0,
        beta: float = 0.0,
        eps: float = MIN_EPS,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        variant: str = "II",
        momentum_dtype: torch.dtype | str = torch.float32,
        cover: CoverChoice = "slices",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "beta": beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "variant": variant,
            "momentum_dtype": momentum_dtype_name(momentum_dtype),
            "cover": named_cover(cover),
        }
        self._ran: set[str] = set()
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with its own options; see `torch.optim.Optimizer.add_param_group`.

        Raises:
            ValueError: an option out of its range.
            TypeError: a complex parameter.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            group["momentum_dtype"] = momentum_dtype_name(group["momentum_dtype"])
            group["cover"] = named_cover(group["cover"])
            check_group(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @property
    def kernel(self) -> str:
        """Which kernels the last step ran, as in "chunked"; "none" before the first."""
        return "+".join(sorted(self._ran)) or "none"

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._ran = set()
        scratch = Scratch()
        for group, param in self._with_gradients():
            task = self._task(group, param)
            chunked.gather(task, scratch)
            chunked.finish(task, scratch)
            self._ran.add("chunked")
        return loss

    def _with_gradients(self) -> Iterable[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    yield group, param

    def _task(self, group: dict[str, Any], param: Tensor) -> Task:
        names = ("lr", "momentum", "beta", "eps", "weight_decay", "maximize", "variant")
        options = Options(**{name: group[name] for name in names})
        cover = cover_of(group, param)
        assert isinstance(cover, GridCover)
        assert param.grad is not None
        state = self.state[param]
        accumulators = [
            Accumulator(_stored(state, number, shape, param).view(grid_shape(param.shape, grid)), grid)
            for number, (shape, grid) in enumerate(
                zip(cover.state_shapes(param.shape), cover.grids(param.shape), strict=True)
            )
        ]
        return Task(param, param.grad, accumulators, _momentum(state, group, param), options)


def _stored(state: dict[str, Any], number: int, shape: tuple[int, ...], param: Tensor) -> Tensor:
    key = f"accumulator_{number}"
    if key not in state:
        state[key] = torch.zeros(shape, dtype=torch.float32, device=param.device)
    kept: Tensor = state[key]
    return kept


def _momentum(state: dict[str, Any], group: dict[str, Any], param: Tensor) -> Momentum | None:
    if not group["momentum"]:
        return None
    if "momentum_buffer" not in state:
        dtype = getattr(torch, group["momentum_dtype"])
        state["momentum_buffer"] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    return FloatMomentum(state["momentum_buffer"])


__all__ = ["SM3", "Cover"]
