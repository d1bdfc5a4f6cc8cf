"""How the model is trained: precision, accumulation, checkpointing, clipping and where gradients are zeroed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp32", "bf16", "amp-bf16", "amp-fp16"]
ZeroGrad = Literal["start", "before-backward", "after-step"]


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
    warmup: int = Field(default=1, ge=0)
    steps: int = Field(default=3, ge=2)
    seed: int = 0
