"""Records a training with Lightning that uses automatic optimization and one optimizer.

Private API of Lightning, tested with 2.6.6 on torch 2.13: `fit_loop._should_accumulate`, which says whether a batch is
the last one of its optimizer step.

trainer = lightning.Trainer(..., callbacks=[MemoryRecorder("run.json")])
trainer.fit(module, data)  # then: memprof report run.json -o run.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from memprof.callbacks.recorder import TrainingRecorder
from memprof.documents.recipe import Recipe

_PRECISIONS = {"bf16-mixed": "amp-bf16", "16-mixed": "amp-fp16", "bf16-true": "bf16"}


class MemoryRecorder(Callback):  # type: ignore[misc]  # lightning is not installed where types are checked
    """Records the memory of the first training steps and saves it as a comparison document.

    Args:
        path: The path of the document. In a distributed training only the first process writes it.
        steps: The number of optimizer steps to record, at least 3.
        batch_size: The number of samples in each micro-batch. By default it is read from the data loader.
        force: Whether to overwrite an existing file.

    Raises:
        UsageError: The path cannot be written, or `steps` is below 3.
    """

    def __init__(self, path: str | Path, steps: int = 3, *, batch_size: int | None = None, force: bool = False) -> None:
        self._recorder = TrainingRecorder(path, steps, force=force)
        self._batch_size = batch_size
        self._step_open = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the recording."""
        if trainer.is_global_zero:
            size = self._batch_size or getattr(trainer.train_dataloader, "batch_size", None) or 1
            self._recorder.begin(pl_module, trainer.optimizers[0], _recipe_of(trainer), size)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin a step with its first micro-batch, and the forward phase: `training_step` is called next."""
        if not self._step_open:
            self._recorder.begin_step()
            self._step_open = True
        self._recorder.begin_phase("forward")

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Begin the phase in which the gradients are freed; Lightning does that between forward and backward."""
        self._recorder.begin_phase("zero_grad")

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Begin the backward phase."""
        self._recorder.begin_phase("backward")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Begin the optimizer phase."""
        self._recorder.begin_phase("optimizer")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the step with its last micro-batch."""
        if self._step_open and not trainer.fit_loop._should_accumulate():
            self._recorder.end_step()
            self._step_open = False

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the recording if the training ended before all steps were recorded."""
        self._recorder.end()


def _recipe_of(trainer: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "precision": _PRECISIONS.get(str(trainer.precision), "fp32"),
            "accumulate": trainer.accumulate_grad_batches,
            "clip_grad": trainer.gradient_clip_val or None,
            "zero_grad": "before-backward",
        }
    )
