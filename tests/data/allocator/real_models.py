"""Trains built-in workloads, made small, with PyTorch's CUDA code and prints the allocator's peaks as JSON.

Started in the environment of `programs.without_gpu(..., null_gpu=True)`; nothing is computed, everything is allocated.
Convolutions need cuDNN, which is not there; SM3's Triton kernel needs a GPU.
"""

from __future__ import annotations

import gc
import json
from typing import Any

import torch

from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.optimizers.registry import build_optimizer
from memprof.training.step import TrainingStep
from memprof.workloads.loader import load_workload

BATCH, STEPS = 8, 2
TRANSFORMER = {"n_layers": 2, "d_model": 128, "n_heads": 4, "seq_len": 64, "vocab_size": 4000}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "gpt2": {**TRANSFORMER, "d_model": 256, "seq_len": 128},
    "bert-large": {**TRANSFORMER, "d_ff": 512},
    "transformer-big": {**TRANSFORMER, "d_ff": 512},
    "llama": {**TRANSFORMER, "n_kv_heads": 2, "d_ff": 384},
}
RECIPES = {
    "fp32": Recipe(),
    "bf16": Recipe(precision="bf16"),
    "amp-bf16": Recipe(precision="amp-bf16"),
    "amp-fp16": Recipe(precision="amp-fp16"),
    "clip": Recipe(clip_grad=1.0),
    "zero-before-backward": Recipe(zero_grad="before-backward"),
    "accumulate": Recipe(accumulate=2),
}
OPTIMIZERS = ("adam", "sgd", "adagrad", "adafactor", "adamw,fused=true", "sm3,kernel='chunked'")


def train(model: str, recipe: Recipe, optimizer: str) -> dict[str, int]:
    """Return the peaks from the first step on, the model's and the optimizer's build apart."""
    device = torch.device("cuda")
    workload = load_workload(WorkloadSpec(model=model, knobs=MODELS[model])).workload
    module = workload.model().to(device).train()
    if recipe.precision == "bf16":
        module.to(torch.bfloat16)
    named = list(module.named_parameters())
    step = TrainingStep(
        workload, module, build_optimizer(parse_optimizer(optimizer), named), recipe, device, BATCH, lambda phase: None
    )
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        step.run()
    stats = torch.cuda.memory_stats()
    return {f"{layer}_bytes": stats[f"{layer}_bytes.all.peak"] for layer in ("allocated", "reserved", "requested")}


def main() -> None:
    runs = []
    for model in MODELS:
        for name, recipe in RECIPES.items():
            for optimizer in OPTIMIZERS:
                gc.collect()
                torch._C._cuda_clearCublasWorkspaces()
                torch.cuda.empty_cache()
                peaks = train(model, recipe, optimizer)
                runs.append({"model": model, "recipe": name, "optimizer": optimizer, **peaks})
    capability = "".join(map(str, torch.cuda.get_device_capability()))
    print(json.dumps({"torch": torch.__version__, "capability": capability, "runs": runs}))


if __name__ == "__main__":
    main()
