"""Records a training with the Hugging Face Trainer. It is tested with transformers 5.23 on torch 2.13.

trainer = Trainer(..., callbacks=[MemoryRecorder("run.json")])
trainer.train()            # then: memprof report run.json -o run.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from memprof.callbacks.recorder import TrainingRecorder
from memprof.documents.recipe import Recipe


class MemoryRecorder(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Records the memory of the first training steps and saves it as a comparison document.

    Args:
        path: The path of the document. In a distributed training only the first process writes it.
        steps: The number of optimizer steps to record, at least 3.
        force: Whether to overwrite an existing file.

    Raises:
        UsageError: The path cannot be written, or `steps` is below 3.
    """

    def __init__(self, path: str | Path, steps: int = 3, *, force: bool = False) -> None:
        self._recorder = TrainingRecorder(path, steps, force=force)

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Begin the recording."""
        if state.is_world_process_zero:
            batch_size = args.per_device_train_batch_size
            self._recorder.begin(keywords["model"], keywords["optimizer"], _recipe_of(args), batch_size)

    def on_step_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Begin a step. The Trainer has already fetched the batches of all its micro-batches."""
        self._recorder.begin_step()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Begin the optimizer phase."""
        self._recorder.begin_phase("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Begin the phase in which the gradients are freed."""
        self._recorder.begin_phase("zero_grad")

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """End the step."""
        self._recorder.end_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Save the recording if the training ended before all steps were recorded."""
        self._recorder.end()


def _recipe_of(args: Any) -> Recipe:
    return Recipe(
        precision="amp-bf16" if args.bf16 else "amp-fp16" if args.fp16 else "fp32",
        accumulate=args.gradient_accumulation_steps,
        checkpoint_activations=args.gradient_checkpointing,
        clip_grad=args.max_grad_norm or None,
        zero_grad="after-step",
        seed=args.seed,
    )
