"""How the model is trained: precision, accumulation, checkpointing, clipping, and over how many ranks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["fp32", "bf16", "amp-bf16", "amp-fp16"]
ZeroGrad = Literal["start", "before-backward", "after-step"]
Strategy = Literal["single", "ddp", "fsdp"]


class Recipe(BaseModel):
    """The training recipe, the same for every optimizer of a comparison.

    Attributes:
        precision: `fp32`; `bf16` (parameters and inputs); `amp-bf16` and `amp-fp16` (autocast over float32
            parameters, the latter with a gradient scaler).
        accumulate: micro-batches per optimizer step; each has the whole batch size.
        checkpoint_activations: recompute the blocks of the model in the backward pass.
        clip_grad: the largest total gradient norm, or None for no clipping.
        zero_grad: where `zero_grad(set_to_none=True)` is called.
        step_in_backward: step each parameter as soon as its gradient is complete, and drop the gradient.
        strategy: `single` rank; `ddp`, every rank with the whole model; `fsdp`, parameters, gradients and state in
            shards (`fully_shard` of each repeated block and of the model). There `amp-bf16` is FSDP's mixed precision:
            parameters gathered in bfloat16, gradients reduced in float32.
        world_size: ranks, each on a device of its own and with its own batch.
        warmup: steps before the counted ones.
        steps: counted steps; the last one is attributed operator by operator, the others are timed.
        seed: of the weights and the batches.
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
        """Return the samples of one optimizer step, over all ranks and micro-batches."""
        return batch_size * self.accumulate * self.world_size
