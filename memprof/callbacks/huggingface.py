"""Records a training of the Hugging Face Trainer; tested with transformers 5.23 on torch 2.13.

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
    """Saves the memory of the first training steps as a comparison document.

    Args:
        path: of the document; written by the first process of a distributed training alone.
        steps: how many optimizer steps to record, at least 3.
        force: overwrite a file that exists.
    """

    def __init__(self, path: str | Path, steps: int = 3, *, force: bool = False) -> None:
        self._recorder = TrainingRecorder(path, steps, force=force)

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Begin to record."""
        if state.is_world_process_zero:
            batch_size = args.per_device_train_batch_size
            self._recorder.begin(keywords["model"], keywords["optimizer"], _recipe_of(args), batch_size)

    def on_step_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Begin a step; the batches of all its micro-batches are there already."""
        self._recorder.begin_step()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """The optimizer is about to step."""
        self._recorder.begin_phase("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """The optimizer has stepped; the gradients are dropped next."""
        self._recorder.begin_phase("zero_grad")

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """The step has ended."""
        self._recorder.end_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Save what there is, if the training was shorter than what was to be recorded."""
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
