"""SM3: a PyTorch optimizer whose state is one float32 number per row, column or other slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from .covers import Cover
from .distributed import ShardedTask, is_dtensor
from .eager import eager
from .exchange import exchange
from .index_sets import IndexSets
from .kernels import Kernel, choose, sparse
from .kernels.scratch import Scratch
from .kernels.task import MIN_EPS, Options, Task
from .option_checks import OPTIONS, check_group, momentum_dtype, momentum_dtype_name
from .selection import CoverChoice, covers_of, named_cover
from .state import accumulators, check_covers, describe_covers, momentum, restored


class SM3(Optimizer):
    r"""The optimizer of Anil, Gupta, Koren, Singer, "Memory-Efficient Adaptive Optimization", NeurIPS 2019.

    For a cover {S_r} of a parameter's indices, SM3-II computes in each step

        nu(i)  <- min_{r: i in S_r} mu(r) + g(i)^2
        w(i)   <- w(i) - lr g(i) / sqrt(nu(i))            (0 / 0 = 0)
        mu(r)  <- max_{i in S_r} nu(i)

    By default the sets are the codimension-1 slices. A parameter of shape (n_1, ..., n_k), k >= 2, then has 4 (n_1 +
    ... + n_k) bytes of state. Tensors of rank 0 and 1 have one accumulator per entry (diagonal Adagrad). Accumulators
    are float32 for every dtype of the parameter. Without momentum SM3 keeps no other state. The state is created in the
    first step. A step takes O(numel) time and, beside the state, less than 4 MiB of temporaries.

    A sparse COO gradient updates only the entries that it holds, without momentum, as in the authors' code. DTensor
    parameters (`fully_shard`) keep their accumulators sharded, and a step takes one collective for each device mesh;
    see `sm3.distributed`.

    Args:
        params: the parameters, parameter groups, or the pairs of `model.named_parameters()`.
        lr: the learning rate, a float or a one-element tensor. Without momentum and beta, the first step of every
            coordinate that has a gradient has this size. The denominator grows, so no decay is needed, but a warm-up
            helps (`sm3.warmup`) and allows a larger rate (0.1). The default is the same as in `torch.optim.Adagrad`,
            which takes the same first step.
        momentum: the weight of the past in the average of the preconditioned gradient, m <- momentum m + (1 - momentum)
            g / sqrt(nu), as in the authors' code. The default, 0, keeps no buffer. Any other value keeps one number per
            entry.
        beta: 0 sums the squares as in the paper. Any other value averages them, nu <- beta min mu + (1 - beta) g^2, so
            that they decay.
        eps: the smallest value of the denominator: the update is g / max(sqrt(nu), eps). The default, 2**-63, is also
            the smallest value allowed. It changes no update of a gradient above 1.1e-19 and makes 0 / 0 = 0.
        weight_decay: the decoupled weight decay, w <- (1 - lr weight_decay) w.
        maximize: whether to maximize the objective instead of minimizing it.
        variant: "II" or "I". SM3-I computes mu(r) <- mu(r) + max g^2 over S_r and nu = min mu. Its nu is larger, and it
            takes two passes.
        momentum_dtype: `torch.float32`, `torch.bfloat16` or `torch.int8`, or one of these names.
        cover: which indices share an accumulator. It is a name ("slices", "rows", "singleton", "whole"), a
            `sm3.covers.Cover`, or a mapping from name patterns ("*.embed*") or parameters to either.
        kernel: "auto" takes the fastest kernel that can run: "triton" on CUDA, "native" on the CPU (compiled on first
            use, once per machine), otherwise "chunked", which runs anywhere. One of these names allows only that
            kernel. All kernels are fused (there are no `foreach` and `fused` options), and `torch.compile` leaves them
            as they are.

    Raises:
        ValueError: an option is out of its range, or a cover misses an index.
        TypeError: a parameter is complex.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float = 0.0,
        beta: float = 0.0,
        eps: float = MIN_EPS,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        variant: str = "II",
        momentum_dtype: torch.dtype | str = torch.float32,
        cover: CoverChoice = "slices",
        kernel: str = "auto",
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
            "kernel": kernel,
        }
        self._ran: set[str] = set()
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with its own options; see `torch.optim.Optimizer.add_param_group`.

        Args:
            param_group: the parameters of the group, under "params", and its options.

        Raises:
            ValueError: an option is out of its range, or a cover does not fit a parameter.
            TypeError: a parameter is complex.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            group["momentum_dtype"] = momentum_dtype_name(group["momentum_dtype"])
            group["cover"] = named_cover(group["cover"])
            check_group(group)
            for param, cover in zip(group["params"], covers_of(group), strict=True):
                cover.state_shapes(param.shape)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @property
    def kernel(self) -> str:
        """The kernels that ran in the last step, for example "native" or "chunked+native"; "none" before the first."""
        return "+".join(sorted(self._ran)) or "none"

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: a function that reevaluates the model and returns the loss.

        Returns:
            The loss that the closure returned, or None without a closure.

        Raises:
            ValueError: the options do not allow a parameter's gradient (sparse, or not a DTensor), or a cover was
                changed.
            RuntimeError: the kernel that the group asks for cannot update a parameter.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update_all()
        return loss

    @eager
    def _update_all(self) -> None:
        self._ran = set()
        scratch = Scratch()
        sharded = []
        for group, param, cover in self._with_gradients():
            if is_dtensor(param):
                sharded.append(self._begin(group, param, cover, scratch))
            else:
                self._ran.add(self._update(self._task(group, param, cover), group["kernel"], scratch))
        exchange([one for part, _ in sharded for one in part.waiting()])
        for part, kernel in sharded:
            kernel.finish(part.task, scratch)

    def _begin(self, group: dict[str, Any], param: Any, cover: Cover, scratch: Scratch) -> tuple[ShardedTask, Kernel]:
        part = ShardedTask(self.state[param], group, param, cover)
        kernel = choose(part.task, group["kernel"])
        kernel.gather(part.task, scratch)
        self._ran.add(kernel.name)
        return part, kernel

    def _with_gradients(self) -> Iterable[tuple[dict[str, Any], Tensor, Cover]]:
        for group in self.param_groups:
            for param, cover in zip(group["params"], covers_of(group), strict=True):
                if param.grad is not None:
                    yield group, param, cover

    def _task(self, group: dict[str, Any], param: Tensor, cover: Cover) -> Task:
        state = self.state[param]
        assert param.grad is not None
        if param.grad.is_sparse:
            return Task(param, param.grad, accumulators(state, cover, param), None, Options.of(group))
        task = Task(
            param,
            param.grad,
            accumulators(state, cover, param),
            momentum(state, group, param),
            Options.of(group),
        )
        return task.flattened() if isinstance(cover, IndexSets) else task.in_memory_order()

    def _update(self, task: Task, choice: str, scratch: Scratch) -> str:
        if task.grad.is_sparse:
            sparse.step(task, scratch)
            return "sparse"
        kernel = choose(task, choice)
        kernel.gather(task, scratch)
        kernel.finish(task, scratch)
        return kernel.name

    def state_dict(self) -> dict[str, Any]:
        """Return the state as `torch.optim.Optimizer.state_dict` does, with each cover replaced by its name.

        The state holds only tensors, numbers and text, so `torch.load(weights_only=True)` reads it.
        """
        packed = super().state_dict()
        for group, saved in zip(self.param_groups, packed["param_groups"], strict=True):
            saved["cover"] = describe_covers(group)
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of a saved state. Accumulators stay float32 for every dtype of the parameters.

        Covers are compared but not loaded, and kernels are not loaded, because both belong to the program.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            ValueError: the groups, covers or shapes are not those of this optimizer.
        """
        own = [{name: group[name] for name in ("cover", "kernel")} for group in self.param_groups]
        given: dict[str, Any] = {}

        def take(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            check_covers(self.param_groups, saved["param_groups"])
            given.update(saved)
            return {**saved, "state": {}}

        def restore(_: Optimizer) -> None:
            for group, kept, packed in zip(self.param_groups, own, given["param_groups"], strict=True):
                group.update(kept)
                dtype = momentum_dtype(group)
                for number, param, cover in zip(packed["params"], group["params"], covers_of(group), strict=True):
                    if number in given["state"]:
                        self.state[param] = restored(given["state"][number], param, cover, dtype)

        hooks = [
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_ran", set())
        for group in self.param_groups:
            for option, default in self.defaults.items():
                if option in OPTIONS:
                    group.setdefault(option, default)
