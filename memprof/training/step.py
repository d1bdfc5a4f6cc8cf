"""The training step. Measuring and predicting share it, so that both do the same things in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memprof.documents.recipe import Recipe
from memprof.errors import UsageError
from memprof.training.seeds import seed_batch
from memprof.workloads.workload import Workload

PHASES = ("batch", "forward", "backward", "clip", "optimizer", "zero_grad")


class Optimizer(Protocol):
    """The part of an optimizer that a training step calls."""

    def step(self) -> Any:
        """Update the parameters."""

    def zero_grad(self) -> None:
        """Drop the gradients."""


class TrainingStep:
    """Runs one optimizer step at a time, as an ordinary training loop does.

    `batch` and `loss` live until the next step rebinds them, as the local variables of a loop do. So the previous
    batch is still alive while the next one is made, and the previous loss until the forward pass has returned.

    Args:
        workload: The workload, which makes batches and losses.
        model: The model on its device, in training mode.
        optimizer: The optimizer of the model's trainable parameters.
        recipe: The recipe: precision, accumulation, clipping, and when gradients are dropped.
        device: The device to which each batch is moved.
        batch_size: The number of samples in a micro-batch.
        on_phase: Is called with the name of each phase as it begins. `PHASES` lists the names.
    """

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        optimizer: Optimizer,
        recipe: Recipe,
        device: torch.device,
        batch_size: int,
        on_phase: Callable[[str], None],
    ) -> None:
        self.workload = workload
        self.model = model
        self.optimizer = optimizer
        self.recipe = recipe
        self.device = device
        self.batch_size = batch_size
        self.batch: Any = None
        self.loss: Tensor | None = None
        self._on_phase = on_phase
        self._batches = 0
        self._scaler: Any = None
        if recipe.precision == "amp-fp16":
            self._scaler = torch.amp.GradScaler(device.type)

    def run(self) -> None:
        """Take one optimizer step: run every micro-batch forward and backward, clip, step, and drop the gradients.

        Raises:
            UsageError: The workload's loss is no scalar tensor that depends on a trainable parameter.
        """
        if self.recipe.zero_grad == "start":
            self._zero_grad()
        for micro_batch in range(self.recipe.accumulate):
            self._on_phase("batch")
            self.batch = self._make_batch()
            with self._synchronization(last=micro_batch == self.recipe.accumulate - 1):
                self._on_phase("forward")
                with self._autocast():
                    self.loss = self._scalar_loss()
                if self.recipe.zero_grad == "before-backward" and micro_batch == 0:
                    self._zero_grad()
                self._on_phase("backward")
                self._backward(self.loss)
        if self.recipe.clip_grad is not None:
            self._clip(self.recipe.clip_grad)
        if not self.recipe.step_in_backward:
            self._step()
        if self.recipe.zero_grad == "after-step":
            self._zero_grad()

    def scaler_tensors(self) -> list[Tensor]:
        """Return the tensors that the gradient scaler of `amp-fp16` keeps on the device."""
        return [value for value in vars(self._scaler or object).values() if isinstance(value, Tensor)]

    def _make_batch(self) -> Any:
        self._batches += 1
        rank = torch.distributed.get_rank() if self.recipe.world_size > 1 else 0
        seed_batch(self.recipe.seed, rank, self._batches)
        batch = self.workload.batch(self.batch_size)
        dtype = torch.bfloat16 if self.recipe.precision == "bf16" else None
        return move_batch(batch, self.device, dtype)

    def _synchronization(self, last: bool) -> AbstractContextManager[None]:
        """Let ranks exchange gradients only after the last micro-batch, if the strategy can wait."""
        if last or self.recipe.strategy == "single":
            return nullcontext()
        from memprof.training.strategies import unsynchronized  # half a second, for those who need it

        return unsynchronized(self.model)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtypes = {"amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}
        if self.recipe.precision not in dtypes or self.recipe.strategy == "fsdp":
            return nullcontext()
        return torch.autocast(self.device.type, dtypes[self.recipe.precision])

    def _scalar_loss(self) -> Tensor:
        loss = self.workload.loss(self.model, self.batch)
        if not isinstance(loss, Tensor):
            raise UsageError(f"the loss is a {type(loss).__name__}; return a scalar tensor, for example `loss.mean()`")
        if loss.numel() != 1:
            raise UsageError(
                f"the loss has shape {tuple(loss.shape)}; reduce it to a scalar, for example `loss.mean()`"
            )
        if not loss.requires_grad:
            raise UsageError("the loss does not depend on any trainable parameter; compute it from the model's output")
        return loss

    def _backward(self, loss: Tensor) -> None:
        if self.recipe.accumulate > 1:
            loss = loss / self.recipe.accumulate
        (self._scaler.scale(loss) if self._scaler else loss).backward()

    def _clip(self, max_norm: float) -> None:
        self._on_phase("clip")
        if self._scaler:
            self._scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def _step(self) -> None:
        self._on_phase("optimizer")
        if self._scaler:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        else:
            self.optimizer.step()

    def _zero_grad(self) -> None:
        self._on_phase("zero_grad")
        self.optimizer.zero_grad()


class PerParameterOptimizers:
    """Gives each parameter an optimizer of its own, which steps in the backward pass when the gradient is complete.

    Source: the PyTorch tutorial "How to save memory by fusing the optimizer step into the backward pass".

    Args:
        parameters: The trainable parameters.
        build: Makes the optimizer of one parameter.
        before_step: Is called with the parameter when its gradient is complete.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        build: Callable[[nn.Parameter], torch.optim.Optimizer],
        before_step: Callable[[nn.Parameter], None],
    ) -> None:
        self.optimizers = {parameter: build(parameter) for parameter in parameters}
        self._before_step = before_step
        for parameter in self.optimizers:
            parameter.register_post_accumulate_grad_hook(self._step_parameter)

    def _step_parameter(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        self._before_step(parameter)
        self.optimizers[parameter].step()
        parameter.grad = None

    def step(self) -> None:
        """Do nothing, because every parameter was stepped in the backward pass."""

    def zero_grad(self) -> None:
        """Drop the gradients that are left, which belong to parameters that the backward pass has not reached."""
        for parameter in self.optimizers:
            parameter.grad = None


def move_batch(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Return a batch on a device.

    Args:
        batch: A tensor, or a nest of tensors in dictionaries, lists and tuples. Other values stay as they are.
        device: The device.
        dtype: The type to which floating-point tensors are cast; None to keep their types.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, dtype) if dtype is not None and batch.is_floating_point() else batch.to(device)
    if isinstance(batch, dict):
        return type(batch)({key: move_batch(value, device, dtype) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_batch(value, device, dtype) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(move_batch(value, device, dtype) for value in batch)
    return batch


def check_trainable(model: nn.Module) -> None:
    """Check that a model has something to train.

    Args:
        model: The model.

    Raises:
        UsageError: The model has no parameters, or all of them are frozen.
    """
    parameters = list(model.parameters())
    if not parameters:
        raise UsageError("the model has no parameters; return a module with at least one nn.Parameter")
    if not any(parameter.requires_grad for parameter in parameters):
        raise UsageError("every parameter of the model is frozen; set requires_grad=True on what is to be trained")
