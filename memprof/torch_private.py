"""The private names of PyTorch that memprof and sm3 use, and the versions that the tests passed on with them.

PyTorch may change these without notice. `memprof doctor` reads this table and warns where the PyTorch that is installed
is older or newer than all that were tried; a test holds the table against the syntax trees of both packages.
"""

from __future__ import annotations

from collections.abc import Mapping

_EVERYWHERE = ("2.8.0", "2.13.0", "2.15.0")
_ON_CUDA = ("2.8.0", "2.15.0")  # against PyTorch's own CUDA code, in its builds for CUDA

_PINNED = ("2.13.0",)

CHECKED_ON: Mapping[str, tuple[str, ...]] = {
    "torch._C": _PINNED,  # takes what builds for the CPU lack: `_cuda_getDeviceCount` and its like
    "torch._C.DisableTorchFunction": _EVERYWHERE,
    "torch._C.DispatchKey": _EVERYWHERE,
    "torch._C.DispatchKeySet": _EVERYWHERE,
    "torch._C._ExcludeDispatchKeyGuard": _EVERYWHERE,
    "torch._C._autograd.DeviceType": _EVERYWHERE,
    "torch._C._autograd._disable_profiler": _EVERYWHERE,
    "torch._C._autograd._disable_profiler_legacy": _EVERYWHERE,
    "torch._C._autograd._enable_profiler": _EVERYWHERE,
    "torch._C._autograd._enable_profiler_legacy": _EVERYWHERE,
    "torch._C._autograd._get_sequence_nr": _EVERYWHERE,
    "torch._C._autograd._prepare_profiler": _EVERYWHERE,
    "torch._C._autograd._profiler_enabled": _EVERYWHERE,
    "torch._C._construct_storage_from_data_pointer": _EVERYWHERE,
    "torch._C._current_autograd_node": _EVERYWHERE,
    "torch._C._dispatch_has_kernel_for_dispatch_key": _EVERYWHERE,
    "torch._C._distributed_c10d.HashStore": _EVERYWHERE,
    "torch._C._distributed_c10d._create_work_from_future": _EVERYWHERE,
    "torch._C._get_cudnn_sdp_enabled": _PINNED,
    "torch._C._get_flash_sdp_enabled": _PINNED,
    "torch._C._get_mem_efficient_sdp_enabled": _PINNED,
    "torch._C._group_tensors_by_device_and_dtype": _PINNED,
    "torch._C._len_torch_dispatch_stack": _EVERYWHERE,
    "torch._C._len_torch_function_stack": _EVERYWHERE,
    "torch._C._nn._parse_to": _PINNED,
    "torch._C._profiler.ProfilerActivity": _EVERYWHERE,
    "torch._C._profiler.ProfilerConfig": _EVERYWHERE,
    "torch._C._profiler.ProfilerState": _EVERYWHERE,
    "torch._C._profiler.RecordScope": _EVERYWHERE,
    "torch._C._profiler._ExperimentalConfig": _EVERYWHERE,
    "torch._C._profiler._ExtraFields_Allocation": _EVERYWHERE,
    "torch._C._profiler._ExtraFields_TorchOp": _EVERYWHERE,
    "torch._C._storage_Use_Count": _EVERYWHERE,
    "torch._compile._disable_dynamo": _EVERYWHERE,
    "torch._dynamo": _EVERYWHERE,
    "torch._dynamo.utils": _EVERYWHERE,
    "torch._fused_adagrad_": _EVERYWHERE,
    "torch._higher_order_ops.flex_attention": _PINNED,
    "torch._ops.HigherOrderOperator": _PINNED,
    "torch._prims_common.suggest_memory_format": _EVERYWHERE,
    "torch._subclasses.fake_tensor": _EVERYWHERE,
    "torch._subclasses.fake_tensor.FakeTensor": _EVERYWHERE,
    "torch._subclasses.fake_tensor.FakeTensorMode": _EVERYWHERE,
    "torch.autograd._engine_run_backward": _EVERYWHERE,
    "torch.cuda.memory._record_memory_history": _ON_CUDA,
    "torch.cuda.memory._snapshot": _ON_CUDA,
    "torch.distributed.distributed_c10d._new_process_group_helper": _PINNED,
    "torch.distributed.distributed_c10d._tensor_to_object": _PINNED,
    "torch.distributed.distributed_c10d._world.pg_map": _PINNED,
    "torch.distributed.distributed_c10d._world.pg_names": _EVERYWHERE,
    "torch.distributed.fsdp._fully_shard": _EVERYWHERE,
    "torch.distributed.tensor._dtensor_spec.DTensorSpec": _EVERYWHERE,
    "torch.distributed.tensor._op_schema.OpSchema": _EVERYWHERE,
    "torch.distributed.tensor._op_schema.OutputSharding": _EVERYWHERE,
    "torch.distributed.tensor._sharding_prop.ShardingPropagator": _EVERYWHERE,
    "torch.nn.parallel.distributed._verify_param_shape_across_processes": _EVERYWHERE,
    "torch.overrides._get_current_function_mode_stack": _PINNED,
    "torch.storage.TypedStorage": _PINNED,
    "torch.utils._device.CURRENT_DEVICE": _PINNED,
    "torch.utils._device._device_constructors": _PINNED,
    "torch.utils._foreach_utils": _EVERYWHERE,
    "torch.utils._python_dispatch.TorchDispatchMode": _EVERYWHERE,
    "torch.utils._python_dispatch._disable_current_modes": _EVERYWHERE,
    "torch.utils._python_dispatch.is_traceable_wrapper_subclass": _EVERYWHERE,
}
