"""What a simulated CPU does with a training step: what fake tensors do by themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._prims_common import suggest_memory_format

from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.documents.recipe import Recipe
from memprof.prediction.cpu.kernels import CpuWorkspaces
from memprof.prediction.fake.device import KernelMemory, PlainDevice
from memprof.prediction.fake.dispatch import FakeOperators
from memprof.prediction.fake.python_values import readable_in_python
from memprof.prediction.fake.resized_storages import resizable_storages
from memprof.prediction.fake.tensors import Correction, Result
from memprof.prediction.fake.threads import threads_within
from memprof.workloads.workload import Workload

aten = torch.ops.aten


class CpuSemantics(PlainDevice):
    """The semantics of a CPU, which fake tensors have by themselves.

    Attributes:
        device: The device to which the training moves its model and its batches.
    """

    device = torch.device("cpu")

    @property
    def corrections(self) -> Mapping[Any, Correction]:
        """The corrections by operator. Norms keep statistics in the input's type, unless the weight has another."""
        return {
            aten.convolution.default: channels_last_if_inputs_are,
            aten.native_layer_norm.default: partial(_saved_as_input, weight=2),
            aten.native_group_norm.default: partial(_saved_as_input, weight=1),
            aten.native_batch_norm.default: partial(_saved_as_input, weight=1),
            **UNREDUCED,
        }

    @contextmanager
    def applied(self, mode: FakeOperators) -> Iterator[None]:
        """Make operators behave as on the device within the `with` block.

        Args:
            mode: Runs the operators.
        """
        from sm3.kernels import inner, native

        def skip(function: str, *arguments: object) -> None:
            """The compiled kernel allocates nothing; it would read memory that is not there."""

        inner.rounding()  # SM3 asks once in a process, with a computation that is no part of the training
        with (
            patch.object(native, "_call", skip),
            readable_in_python(mode),
            resizable_storages(mode.log),
            _eager(mode),
            _random_states(mode),
            threads_within(lambda: mode),
        ):
            yield

    def workspaces(self) -> KernelMemory | None:
        """Return the memory that kernels take for themselves."""
        return CpuWorkspaces()

    def built(self, workload: Workload, mode: FakeOperators, recipe: Recipe) -> nn.Module:
        """Return the workload's model on the device.

        Args:
            workload: The workload.
            mode: Runs the operators.
            recipe: The recipe.
        """
        return workload.model()

    def workload(self, workload: Workload, mode: FakeOperators, recipe: Recipe) -> Workload:
        """Return the workload with batches that are made as for the device.

        Args:
            workload: The workload.
            mode: Runs the operators.
            recipe: The recipe.
        """
        return workload

    def optimizer(self, spec: OptimizerSpec) -> OptimizerSpec:
        """Return the optimizer with the implementation that is the default on the device.

        Args:
            spec: The optimizer as the user gave it.
        """
        return spec


def channels_last_if_inputs_are(args: tuple[Any, ...], result: Result) -> Result:
    """Give a convolution's output the layout of its input or its weight, as oneDNN and cuDNN do.

    Source: `_determine_backend_memory_format` in aten/src/ATen/native/Convolution.cpp. The meta kernel leaves the
    layout to torch/_subclasses/fake_impls.py.

    Args:
        args: The arguments of the operator.
        result: The result of its meta kernel.
    """
    image, weight = args[0], args[1]
    wanted = {4: torch.channels_last, 5: torch.channels_last_3d}
    format_ = wanted.get(image.dim())
    if format_ is None or format_ not in (suggest_memory_format(image), suggest_memory_format(weight)):
        return result
    layout = result.shape
    stride = torch.empty(layout.size, device="meta", memory_format=format_).stride()
    return replace(result, shape=replace(layout, stride=stride))


def _keeps_unreduced(args: tuple[Any, ...], result: Result, place: int) -> Result:
    """Keep a mean or a sum of losses in the storage of the losses, as the kernel does (BinaryOps.cpp, Loss.cpp)."""
    if (args[place] if len(args) > place else 1) == 0:
        return result
    entries = torch.broadcast_tensors(args[0], args[1])[0].numel()
    return replace(result, storages=(entries * result.shape.dtype.itemsize,))


UNREDUCED: Mapping[Any, Correction] = {
    aten.mse_loss.default: partial(_keeps_unreduced, place=2),
    aten.smooth_l1_loss.default: partial(_keeps_unreduced, place=2),
    aten.binary_cross_entropy.default: partial(_keeps_unreduced, place=3),
}


def _saved_as_input(args: tuple[Any, ...], result: Result, weight: int) -> Result:
    """Save mean and deviation in the input's type (aten/src/ATen/native/layer_norm.cpp, Normalization.cpp)."""
    mixed = args[weight] is not None and args[weight].dtype != args[0].dtype
    dtype = args[weight].dtype if mixed else args[0].dtype
    output, *saved = result.shape
    shapes = (output, *(replace(layout, dtype=dtype) for layout in saved))
    sizes = (result.storages[0], *(math.prod(layout.size) * dtype.itemsize for layout in saved))
    return replace(result, storages=sizes, shape=shapes)


@contextmanager
def _random_states(mode: FakeOperators) -> Iterator[None]:
    """Note the random generator's states, which checkpointing keeps. No operator makes them; each has 5,056 bytes."""
    original = torch.get_rng_state

    def get_rng_state() -> torch.Tensor:
        state = original()
        storage = state.untyped_storage()
        mode.log.allocated(storage, storage.data_ptr(), storage.nbytes(), host=mode.own_host)
        return state

    with patch.object(torch, "get_rng_state", get_rng_state):
        yield


@contextmanager
def _eager(mode: FakeOperators) -> Iterator[None]:
    """Run models uncompiled that ask to be compiled, because it is not known what a compiler would fuse."""

    def compile_(model: Any = None, *args: Any, **options: Any) -> Any:
        mode.reads.guess(mode.place()[0], "uses torch.compile: it is predicted as if it were not compiled")
        return (lambda function: function) if model is None else model

    def compile_module(module: nn.Module, *args: Any, **options: Any) -> None:
        compile_(module)

    with patch.object(torch, "compile", compile_), patch.object(nn.Module, "compile", compile_module):
        yield
