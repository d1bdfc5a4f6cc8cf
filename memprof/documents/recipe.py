"""The training recipe: precision, gradient accumulation, activation checkpointing, clipping, and the ranks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["fp32", "bf16", "amp-bf16", "amp-fp16"]
ZeroGrad = Literal["start", "before-backward", "after-step"]
Strategy = Literal["single", "ddp", "fsdp"]


class Recipe(BaseModel):
    """The training recipe, the same for every optimizer of a comparison.

    Attributes:
        precision: `fp32`; `bf16` (parameters and inputs); `amp-bf16` or `amp-fp16` (autocast with float32 parameters;
            `amp-fp16` also uses a gradient scaler).
        accumulate: The number of micro-batches per optimizer step. Each of them has the whole batch size.
        checkpoint_activations: Whether the backward pass recomputes the activations of the model's blocks.
        clip_grad: The largest total gradient norm; None for no clipping.
        zero_grad: Where `zero_grad(set_to_none=True)` is called.
        step_in_backward: Whether each parameter is stepped, and its gradient dropped, as soon as its gradient is
            complete.
        strategy: `single`: one rank. `ddp`: every rank holds the whole model. `fsdp`: parameters, gradients and state
            are sharded over the ranks (`fully_shard` of each repeated block and of the model); `amp-bf16` is then
            FSDP's mixed precision, which gathers parameters in bfloat16 and reduces gradients in float32.
        world_size: The number of ranks. Each rank has a device and a batch of its own.
        warmup: The number of steps before the counted ones.
        steps: The number of counted steps. The last one is attributed operator by operator; the others are timed.
        seed: The seed of the weights and the batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision = "fp32"
    accumulate: int = Field(default=1, ge=1)
    checkpoint_activations: bool = False
    clip_grad: float | None = Field(default=None, gt=0)
    zero_grad: ZeroGrad = "after-step"
    step_in_backward: bool = False
    strategy: Strategy = "single"
    world_size: int = Field(default=1, ge=1)
    warmup: int = Field(default=1, ge=0)
    steps: int = Field(default=3, ge=2)
    seed: int = 0

    @model_validator(mode="after")
    def _check_strategy(self) -> Recipe:
        if self.strategy == "single" and self.world_size > 1:
            raise ValueError("--world-size needs --strategy ddp or fsdp, which say how the ranks share the training")
        if self.strategy != "single" and self.world_size == 1:
            raise ValueError(f"--strategy {self.strategy} needs --world-size 2 or more")
        if self.strategy == "ddp" and self.step_in_backward:
            raise ValueError("--step-in-backward would step before DDP has reduced the gradient; use --strategy fsdp")
        if self.strategy == "fsdp" and self.precision == "amp-fp16":
            raise ValueError("--precision amp-fp16 scales gradients, which FSDP has in shards; use amp-bf16")
        return self

    def global_batch(self, batch_size: int) -> int:
        """Return the number of samples of one optimizer step, over all ranks and micro-batches.

        Args:
            batch_size: The samples of one micro-batch on one rank.
        """
        return batch_size * self.accumulate * self.world_size
