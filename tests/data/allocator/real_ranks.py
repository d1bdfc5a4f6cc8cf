"""Trains one rank of many with PyTorch's CUDA code, DDP and FSDP2 and prints the allocator's peaks as JSON.

Started in the environment of `programs.without_gpu(..., null_gpu=True)`; nothing is computed, nothing is sent,
everything is allocated. The process group is one of this file's own, so that nothing of the prediction's is in it.
Each training runs in a process of its own. Adafactor under FSDP is not among them: its norms ask for collectives that
need a backend for CUDA.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.fsdp  # half a second, once for all trainings
import torch.nn.parallel.distributed
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future

from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.optimizers.registry import build_optimizer
from memprof.training.build import build_model, own_module
from memprof.training.step import TrainingStep
from memprof.workloads.loader import load_workload
from tests.data.allocator.real_models import BATCH, MODELS, OPTIMIZERS, STEPS

RECIPES = {
    "ddp": Recipe(strategy="ddp", world_size=4),
    "ddp-amp-bf16": Recipe(strategy="ddp", world_size=8, precision="amp-bf16"),
    "ddp-accumulate": Recipe(strategy="ddp", world_size=2, accumulate=2, zero_grad="before-backward"),
    "fsdp": Recipe(strategy="fsdp", world_size=4),
    "fsdp-amp-bf16": Recipe(strategy="fsdp", world_size=8, precision="amp-bf16"),
    "fsdp-uneven-bf16": Recipe(strategy="fsdp", world_size=3, precision="bf16"),
    "fsdp-clip": Recipe(strategy="fsdp", world_size=4, clip_grad=1.0),
    "fsdp-accumulate": Recipe(strategy="fsdp", world_size=2, accumulate=2),
    "fsdp-checkpoint": Recipe(strategy="fsdp", world_size=4, precision="amp-bf16", checkpoint_activations=True),
    "fsdp-step-in-backward": Recipe(strategy="fsdp", world_size=4, step_in_backward=True),
}
WITHOUT_BLOCKS = ("mlp",)


class Nobody(dist.ProcessGroup):
    """A group whose other members never say anything."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._size = size

    def size(self) -> int:
        return self._size

    def getBackendName(self) -> str:  # noqa: N802
        return "nobody"

    @property
    def group_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    def _over(self, tensors: Any, *rest: Any) -> Any:
        future: Future = Future()
        future.set_result(list(tensors) if isinstance(tensors, (list, tuple)) else [tensors])
        return _create_work_from_future(future)

    allreduce = broadcast = _allgather_base = _reduce_scatter_base = _over
    all_gather_single = reduce_scatter_single = _over

    def allgather(self, outputs: Any, inputs: Any, *rest: Any) -> Any:
        for tensor in outputs[0]:
            tensor.copy_(inputs[0])
        return self._over(outputs[0])


class Quiet:
    """DDP's logger without the figures that it would read from CUDA events."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def set_runtime_stats_and_log(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


def train(model: str, recipe: Recipe, optimizer: str) -> dict[str, int]:
    """Return the peaks from the first step on, the model's and the optimizer's build apart."""
    dist.init_process_group("nobody", store=dist.HashStore(), rank=0, world_size=recipe.world_size)
    device = torch.device("cuda", 0)
    workload = load_workload(WorkloadSpec(model=model, knobs=MODELS[model])).workload
    module = build_model(workload, recipe, device)
    if recipe.strategy == "ddp":
        module.logger = Quiet(module.logger)
    own = own_module(module, recipe)
    named = list(own.named_parameters())
    spec = parse_optimizer(optimizer)
    step = TrainingStep(workload, module, _optimizer(spec, named, recipe), recipe, device, BATCH, lambda phase: None)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        step.run()
    stats = torch.cuda.memory_stats()
    return {f"{layer}_bytes": stats[f"{layer}_bytes.all.peak"] for layer in ("allocated", "reserved", "requested")}


def _optimizer(spec: Any, named: list[Any], recipe: Recipe) -> Any:
    if not recipe.step_in_backward:
        return build_optimizer(spec, named)
    from memprof.training.step import PerParameterOptimizers

    names = {parameter: name for name, parameter in named}
    return PerParameterOptimizers(names, lambda p: build_optimizer(spec, [(names[p], p)]), lambda p: None)


def apart(*arguments: Any) -> dict[str, int] | None:
    """Train in a child, before CUDA is begun here; None where PyTorch refuses."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = json.dumps(train(*arguments))
        except RuntimeError as error:
            print(arguments, error, file=sys.stderr)
            answer = "null"
        with os.fdopen(writer, "w") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text or "null")


def main(only: str = "") -> None:
    # Whether all ranks have the same parameters is read from tensors, in which nothing is written here.
    torch.nn.parallel.distributed._verify_param_shape_across_processes = lambda *arguments: None
    dist.Backend.register_backend("nobody", lambda store, rank, size, timeout: Nobody(rank, size), devices=["cuda"])
    runs = []
    for model in MODELS:
        for name, recipe in RECIPES.items():
            if recipe.checkpoint_activations and model in WITHOUT_BLOCKS:
                continue
            for optimizer in OPTIMIZERS:
                peaks = apart(model, recipe, optimizer) if only in f"{model} {name} {optimizer}" else None
                if peaks is not None:
                    runs.append({"model": model, "recipe": name, "optimizer": optimizer, **peaks})
    print(json.dumps({"torch": torch.__version__, "capability": "80", "runs": runs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
