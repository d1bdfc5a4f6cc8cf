"""What a CUDA device does differently from the CPU that fake tensors claim to be on.

| what | on CUDA |
|---|---|
| attention | flash, memory-efficient, cuDNN or math by generation, type, width, mask (`attention`) |
| dropout | one kernel with a byte mask, where a CPU keeps a mask of the input's type |
| batch norm | cuDNN's, where it takes the input |
| RMS norm | one kernel since 2.9, where a CPU keeps every intermediate tensor |
| autocast | more operators run in float32 (`autocast`) |
| optimizers, clipping | `foreach` by default |
| SM3 | its Triton kernel |
| batches | they are made on the host, then copied to the device |
| devices | `torch.cuda` answers as the GPU would, `"cuda"` names the device of the fake tensors, and a tensor that is
  made without a device is on the host (`runtime`, `host_and_device`) |

Each difference is applied by the operator that PyTorch would call, with PyTorch's own autograd formula. So the tensors
saved for the backward pass, and the time for which they are kept, follow from that. Linear layers, convolutions, layer
norm, GELU, softmax, cross-entropy, embeddings and their gradients are the same on both devices.

Recurrent layers (`nn.LSTM` runs through cuDNN on a GPU, but cell by cell here) and `torch.compile` are not modelled.
Predictions name them as guesses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from memprof.devices.target import Target
from memprof.documents.recipe import Recipe
from memprof.prediction.cpu.semantics import UNREDUCED, CpuSemantics, channels_last_if_inputs_are
from memprof.prediction.cuda.attention import CudaAttention
from memprof.prediction.cuda.autocast import register_autocast
from memprof.prediction.cuda.host_and_device import copy_to
from memprof.prediction.cuda.kernels import Workspaces
from memprof.prediction.cuda.kernels.convolution import is_channels_last
from memprof.prediction.cuda.runtime import simulated_cuda
from memprof.prediction.cuda.sm3 import triton_kernel
from memprof.prediction.fake.dispatch import FakeOperators
from memprof.prediction.fake.tensors import Correction, Layout, Result, contiguous_result
from memprof.workloads.workload import Workload

aten = torch.ops.aten


class CudaSemantics(CpuSemantics):
    """The semantics of a CUDA device.

    Args:
        target: The device and its PyTorch version.
        limited: Whether an allocation that does not fit raises `torch.OutOfMemoryError` in the training; otherwise the
            memory is unlimited.
        devices: The number of GPUs that the training sees.
        index: The index of the GPU that it uses.
    """

    own_host = True

    def __init__(self, target: Target, *, limited: bool = False, devices: int = 1, index: int = 0) -> None:
        self._target = target
        self._limited = limited
        self._devices = devices
        self.device = torch.device("cuda", index)

    @property
    def corrections(self) -> Mapping[Any, Correction]:
        """The corrections by operator. Attention keeps its random state of 16 bytes on the host."""
        return {
            aten.convolution.default: channels_last_if_inputs_are,
            aten._scaled_dot_product_flash_attention.default: self._flash_state,
            aten._scaled_dot_product_efficient_attention.default: self._efficient_state,
            aten._scaled_dot_product_efficient_attention_backward.default: _grouped_gradients,
            aten.log_sigmoid_forward.default: _without_buffer,
            **UNREDUCED,
        }

    @property
    def results(self) -> Mapping[Any, Callable[[tuple[Any, ...]], Result]]:
        """The results of cuDNN's operators and those of `nn.SyncBatchNorm`, which have no meta kernel."""
        return {
            aten.batch_norm_stats.default: _statistics,
            aten.batch_norm_gather_stats_with_counts.default: _gathered_statistics,
            aten.batch_norm_elemt.default: _like_first,
            aten.batch_norm_backward_reduce.default: _reduced_gradients,
            aten.batch_norm_backward_elemt.default: _like_first,
            aten.cudnn_batch_norm.default: _batch_norm_result,
            aten.cudnn_batch_norm_backward.default: _batch_norm_backward_result,
        }

    def _flash_state(self, args: tuple[Any, ...], result: Result) -> Result:
        """Place the random state. It is on the device since 2.7: recorded there in 2.8, but not in 2.6."""
        return result if self._target.torch_version >= (2, 7) else _state_on_host(args, result)

    def _efficient_state(self, args: tuple[Any, ...], result: Result) -> Result:
        """Place the random state. Without dropout it is on the device since 2.15, and not in a recording of 2.8."""
        dropout = args[5] if len(args) > 5 else 0.0
        on_host = dropout or self._target.torch_version < (2, 15)
        return _state_on_host(args, result) if on_host else result

    def workspaces(self) -> Workspaces:
        """Return the memory that CUDA kernels take for themselves."""
        return Workspaces(self._target)

    @contextmanager
    def applied(self, mode: FakeOperators) -> Iterator[None]:
        """Make operators behave as on a CUDA device within the `with` block.

        Args:
            mode: Runs the operators.
        """
        library = torch.library.Library("aten", "IMPL")
        with ExitStack() as stack:
            stack.enter_context(super().applied(mode))
            stack.callback(library._destroy)
            self._register(library)
            stack.enter_context(triton_kernel())
            index = self.device.index
            stack.enter_context(
                simulated_cuda(mode, self._target, limited=self._limited, devices=self._devices, index=index)
            )
            yield

    def _register(self, library: torch.library.Library) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns that a kernel is replaced
            library.impl("scaled_dot_product_attention", CudaAttention(self._target), "AutogradCPU")
            library.impl("dropout", _dropout, "AutogradCPU")
            library.impl("batch_norm", _batch_norm, "AutogradCPU")
            library.impl("softmax.int", _softmax(aten.softmax.int, aten._softmax.default), "AutogradCPU")
            library.impl("log_softmax.int", _softmax(aten.log_softmax.int, aten._log_softmax.default), "AutogradCPU")
            if self._target.torch_version >= (2, 9):
                library.impl("rms_norm", _rms_norm, "AutogradCPU")
                # Autograd uses its own formula as long as a backend has a kernel.
                library.impl("_fused_rms_norm", _never, "CPU")
            register_autocast(library)

    def built(self, workload: Workload, mode: FakeOperators, recipe: Recipe) -> nn.Module:
        """Make the model on the host and copy it to the device, tensor by tensor as `Module.to` does.

        FSDP itself takes the model from the host, block by block.

        Args:
            workload: The workload.
            mode: Runs the operators.
            recipe: The recipe.
        """
        with mode.made_on(host=True):
            model = workload.model()
        if recipe.strategy == "fsdp":
            return model
        return model._apply(lambda tensor: copy_to(tensor, mode, host=False))  # type: ignore[no-any-return]

    def workload(self, workload: Workload, mode: FakeOperators, recipe: Recipe) -> Workload:
        """Return the workload with batches that are made on the host and copied to the device.

        Args:
            workload: The workload.
            mode: Runs the operators.
            recipe: The recipe.
        """
        dtype = torch.bfloat16 if recipe.precision == "bf16" else None

        def batch(batch_size: int) -> Any:
            with mode.made_on(host=True):
                made = workload.batch(batch_size)
            return _copied(made, mode, dtype)

        return replace(workload, batch=batch)


def _copied(value: Any, mode: FakeOperators, dtype: torch.dtype | None) -> Any:
    """Copy every tensor of a nest to the device, floating-point ones in `dtype` if it is given."""
    if isinstance(value, Tensor):
        return copy_to(value, mode, host=False, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return type(value)({key: _copied(item, mode, dtype) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copied(item, mode, dtype) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item, mode, dtype) for item in value)
    return value


def _never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a kernel ran on fake tensors")


def _composed(operator: Any, *args: Any) -> Tensor:
    """Run the operators that PyTorch composes an operator of. `decompose` may run a Python version that differs."""
    output: Tensor = operator._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args)
    return output


def _dropout(tensor: Tensor, p: float, train: bool) -> Tensor:
    """Run one kernel where `is_fused_kernel_acceptable` in aten/src/ATen/native/Dropout.cpp says so."""
    if train and 0 < p < 1 and tensor.numel():
        output: Tensor = aten.native_dropout(tensor, p, True)[0]
        return output
    return _composed(aten.dropout.default, tensor, p, train)


def _rms_norm(tensor: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Run one kernel if the weight has the input's type (`rms_norm_symint` in aten/src/ATen/native/layer_norm.cpp)."""
    if weight is not None and weight.dtype != tensor.dtype:
        return _composed(aten.rms_norm.default, tensor, shape, weight, eps)
    output: Tensor = aten._fused_rms_norm(tensor, shape, weight, eps)[0]
    return output


def _softmax(composed: Any, kernel: Any) -> Callable[..., Any]:
    def run(tensor: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
        """Read float16 and write float32 in one kernel (aten/src/ATen/native/SoftMax.cpp)."""
        if tensor.dtype is torch.float16 and dtype is torch.float32:
            return kernel(tensor, dim, True)
        return _composed(composed, tensor, dim, dtype)

    return run


def _batch_norm(
    tensor: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    enabled: bool,
) -> Tensor:
    """Run cuDNN's kernel where `_batch_norm_impl_index` in aten/src/ATen/native/Normalization.cpp does."""
    matched = weight is not None and bias is not None and (mean is None) == (variance is None)
    fits = tensor.dim() >= 3 and tensor.shape[0] <= (880801 if training else 65535)
    types = tensor.dtype is torch.float32 or (weight is not None and weight.dtype is torch.float32)
    if enabled and matched and fits and types and tensor.dtype is not torch.bfloat16 and (training or mean is not None):
        format_ = torch.channels_last if is_channels_last(tensor) else torch.contiguous_format
        output: Tensor = aten.cudnn_batch_norm(
            tensor.contiguous(memory_format=format_), weight, bias, mean, variance, training, momentum, eps
        )[0]
        return output
    return aten.native_batch_norm(tensor, weight, bias, mean, variance, training, momentum, eps)[0]  # type: ignore[no-any-return]


def _batch_norm_result(args: tuple[Any, ...]) -> Result:
    """Return output, mean, inverse deviation and cuDNN's reserve, which is empty for a plain batch norm."""
    tensor, weight, training = args[0], args[1], args[5]
    saved = torch.empty(weight.shape if training else (0,), dtype=weight.dtype, device="meta")
    reserve = torch.empty(0, dtype=torch.uint8, device="meta")
    return contiguous_result((torch.empty_like(tensor, device="meta"), saved, saved, reserve))


def _batch_norm_backward_result(args: tuple[Any, ...]) -> Result:
    tensor, weight = args[0], args[2]
    per_channel = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    return contiguous_result((torch.empty_like(tensor, device="meta"), per_channel, per_channel))


def _statistics(args: tuple[Any, ...]) -> Result:
    """Return mean and inverse deviation, at least in float32 (aten/src/ATen/native/cuda/Normalization.cu)."""
    tensor = args[0]
    dtype = torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype
    return _per_channel(tensor.shape[1], dtype, dtype)


def _gathered_statistics(args: tuple[Any, ...]) -> Result:
    return _per_channel(args[1].shape[1], args[1].dtype, args[1].dtype)


def _like_first(args: tuple[Any, ...]) -> Result:
    found = contiguous_result((torch.empty_like(args[0], device="meta"),))
    return replace(found, shape=found.shape[0])


def _reduced_gradients(args: tuple[Any, ...]) -> Result:
    """Return two sums and the gradients of weight and bias. Those that are not asked for are empty."""
    mean, weight, asked = args[2], args[4], args[5:8]
    own = mean.dtype if weight is None else weight.dtype
    dtypes = (mean.dtype, mean.dtype, own, own)
    wanted = (asked[0], asked[0], asked[1], asked[2])
    sizes = [mean.shape[0] if each else 0 for each in wanted]
    return contiguous_result(
        tuple(torch.empty(size, dtype=dtype, device="meta") for size, dtype in zip(sizes, dtypes, strict=True))
    )


def _per_channel(channels: int, *dtypes: torch.dtype) -> Result:
    return contiguous_result(tuple(torch.empty(channels, dtype=dtype, device="meta") for dtype in dtypes))


def _without_buffer(args: tuple[Any, ...], result: Result) -> Result:
    """Empty the buffer, which only the CPU keeps for the backward pass (aten/src/ATen/native/cuda/Activation.cpp)."""
    output, buffer = result.shape
    return replace(result, storages=(result.storages[0], 0), shape=(output, replace(buffer, size=(0,), stride=(1,))))


def _state_on_host(args: tuple[Any, ...], result: Result) -> Result:
    """Empty the integer outputs: the random state of dropout, which attention keeps on the host."""
    state = [part for part in result.shape if isinstance(part, Layout) and not part.dtype.is_floating_point]
    numbers = {layout.storage for layout in state}
    storages = tuple(0 if number in numbers else size for number, size in enumerate(result.storages))
    shape = tuple(replace(part, size=(0,), stride=(1,)) if part in state else part for part in result.shape)
    return replace(result, storages=storages, shape=shape)


def _grouped_gradients(args: tuple[Any, ...], result: Result) -> Result:
    """Return gradients of keys and values in their own shape, if they have fewer heads than the queries."""
    query, key = args[1:3]
    if query.shape[1] == key.shape[1]:
        return result
    rows = [torch.empty(tensor.transpose(1, 2).shape, dtype=tensor.dtype, device="meta") for tensor in args[1:4]]
    without_bias = torch.empty(0, dtype=query.dtype, device="meta")
    return contiguous_result((*(tensor.transpose(1, 2) for tensor in rows), without_bias))
