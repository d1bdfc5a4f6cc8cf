"""Asks cuDNN which plans its heuristics have for a convolution on a GPU that is not there.

cuDNN 9.8 and later build plans from a description of the device ("Deviceless ahead-of-time compilation" in the
documentation of its frontend; `CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR` in cudnn_graph.h). PyTorch describes a convolution
the same way (`build_opgraph` in aten/src/ATen/native/cudnn/Conv_v8.cpp) and takes the first plan that can be had.
Needs the packages nvidia-cudnn-cu12 (9.8.0.87 was asked), nvidia-cublas-cu12 and nvidia-cuda-nvrtc-cu12.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Iterator, Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.accuracy.xmem.convolutions import Convolution, Plan

# CUDNN_ATTR_*, CUDNN_BACKEND_*_DESCRIPTOR and CUDNN_TYPE_* of cudnn_graph.h (9.8).
_CONVOLUTION, _ENGINE, _CONFIGURATION, _HEURISTIC, _PLAN, _GRAPH, _TENSOR, _DEVICE = 1, 2, 3, 4, 5, 15, 17, 38
_DATA_TYPE, _INT64, _FLOAT32, _MODE, _HEURISTIC_MODE, _NOTE, _DESCRIPTOR, _CHAR = 1, 3, 4, 7, 8, 11, 15, 24
_FLOAT, _CROSS_CORRELATION = 0, 1
# The descriptor of an operation, and its first attributes: alpha, beta, convolution, weight, input, output.
_OPERATIONS = {
    "forward": (10, (700, 701, 702, 703, 704, 705)),
    "input gradient": (12, (706, 707, 708, 709, 710, 711)),
    "weight gradient": (11, (712, 713, 714, 715, 716, 717)),
}
_ALIGNMENT = 32  # bytes, the most that PyTorch states
_INSTANT, _FALLBACK = 0, 2
# What decides is the compute capability and the number of multiprocessors; other clocks or caches gave the same plans.
_DEVICES: dict[str, dict[str, Any]] = {
    "rtx-3060": {"deviceVer": 860, "multiProcessorCount": 28, "maxCtasPerSM": 16, "totalGlobalMem": 12622168064},
    "rtx-4060": {"deviceVer": 890, "multiProcessorCount": 24, "maxCtasPerSM": 24, "totalGlobalMem": 8318222336},
}
_COMMON: dict[str, Any] = {
    "warpSize": 32, "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 101376,
    "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 1536, "regsPerBlock": 65536, "smClockRateKHz": 1777000, "l2CacheSize": 3 << 20,
    "maxBlockSize": [1024, 1024, 64], "memClockRateKHz": 7501000, "maxGridSize": [2147483647, 65535, 65535],
    "supportCoopLaunch": 1, "pciDeviceId": 0, "isTccDriver": 0, "cudaDeviceId": 0, "driverVer": 12040,
}  # fmt: skip


def version() -> str:
    """Return cuDNN's version, such as `9.8.0`."""
    library = _library()
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = library.cudnnGetVersion()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def plans(convolution: Convolution, device: str) -> list[Plan]:
    """Return the plans that cuDNN would have PyTorch try, in that order.

    Args:
        convolution: in float32.
        device: a GPU described above.
    """
    graph, there = _graph(convolution), _device(device)
    return [
        Plan(_number(engine, 1301), 0 in _notes(engine), _workspace(configuration, there))
        for mode in (_INSTANT, _FALLBACK)
        for configuration, engine in _configurations(graph, there, mode)
    ]


@cache
def _library() -> ctypes.CDLL:
    """Load cuDNN, what it loads by name first."""
    root = find_spec("nvidia.cudnn")
    if root is None or not root.submodule_search_locations:
        raise ModuleNotFoundError("nvidia.cudnn: install nvidia-cudnn-cu12==9.8.0.87")
    folder = Path(next(iter(root.submodule_search_locations))).parent
    parts = [f"cudnn/lib/libcudnn_{part}.so.9" for part in ("graph", "ops", "cnn", "heuristic")]
    engines = [f"cudnn/lib/libcudnn_engines_{part}.so.9" for part in ("precompiled", "runtime_compiled")]
    for name in ("cublas/lib/libcublasLt.so.12", "cuda_nvrtc/lib/libnvrtc.so.12", *parts, *engines):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(folder / "cudnn/lib/libcudnn.so.9"), mode=ctypes.RTLD_GLOBAL)


def _checked(status: int) -> None:
    if status:
        text = ctypes.create_string_buffer(2000)
        _library().cudnnGetLastErrorString(text, ctypes.c_size_t(2000))
        raise RuntimeError(f"cuDNN: {text.value.decode()}")


def _made(kind: int) -> c_void_p:
    descriptor = c_void_p()
    _checked(_library().cudnnBackendCreateDescriptor(kind, ctypes.byref(descriptor)))
    return descriptor


def _set(descriptor: c_void_p, name: int, kind: int, values: Sequence[Any]) -> None:
    types: dict[int, Any] = {_INT64: c_int64, _FLOAT32: c_float, _DESCRIPTOR: c_void_p}
    array = (types.get(kind, c_int) * len(values))(*values)
    _checked(_library().cudnnBackendSetAttribute(descriptor, name, kind, c_int64(len(values)), array))


def _finished(descriptor: c_void_p) -> c_void_p:
    _checked(_library().cudnnBackendFinalize(descriptor))
    return descriptor


def _number(descriptor: c_void_p, name: int) -> int:
    value, count = c_int64(), c_int64()
    address = ctypes.byref(value)
    _checked(_library().cudnnBackendGetAttribute(descriptor, name, _INT64, c_int64(1), ctypes.byref(count), address))
    return value.value


def _notes(engine: c_void_p) -> list[int]:
    """Return an engine's numerical notes; 0 is tensor cores."""
    values, count = (c_int * 20)(), c_int64()
    _checked(_library().cudnnBackendGetAttribute(engine, 1303, _NOTE, c_int64(20), ctypes.byref(count), values))
    return list(values[: count.value])


@cache
def _device(name: str) -> c_void_p:
    text = json.dumps({**_COMMON, **_DEVICES[name], "deviceName": name}).encode() + b"\0"
    descriptor = _made(_DEVICE)
    _checked(_library().cudnnBackendSetAttribute(descriptor, 2702, _CHAR, c_int64(len(text)), text))
    return _finished(descriptor)


def _tensor(name: str, shape: Sequence[int], channels_last: bool) -> c_void_p:
    order = [0, *range(2, len(shape)), 1] if channels_last else list(range(len(shape)))
    strides = {place: math.prod(shape[after] for after in order[at + 1 :]) for at, place in enumerate(order)}
    descriptor = _made(_TENSOR)
    _set(descriptor, 901, _DATA_TYPE, [_FLOAT])
    _set(descriptor, 902, _INT64, shape)
    _set(descriptor, 903, _INT64, [strides[place] for place in range(len(shape))])
    _set(descriptor, 906, _INT64, [ord(name)])
    _set(descriptor, 900, _INT64, [_ALIGNMENT])
    return _finished(descriptor)


def _graph(convolution: Convolution) -> c_void_p:
    how = _made(_CONVOLUTION)
    _set(how, 100, _DATA_TYPE, [_FLOAT])
    _set(how, 101, _MODE, [_CROSS_CORRELATION])
    _set(how, 106, _INT64, [len(convolution.stride)])
    pairs = ((102, convolution.dilation), (103, convolution.stride), (104, convolution.padding))
    for name, values in (*pairs, (105, convolution.padding)):
        _set(how, name, _INT64, values)
    kind, (alpha, beta, place, *tensors) = _OPERATIONS[convolution.which]
    operation = _made(kind)
    _set(operation, place, _DESCRIPTOR, [_finished(how).value])
    shapes = (convolution.weight, convolution.image, convolution.output)
    for name, letter, shape in zip(tensors, "wxy", shapes, strict=True):
        _set(operation, name, _DESCRIPTOR, [_tensor(letter, shape, convolution.channels_last).value])
    _set(operation, alpha, _FLOAT32, [1.0])
    _set(operation, beta, _FLOAT32, [0.0])
    graph = _made(_GRAPH)
    _set(graph, 801, _DESCRIPTOR, [_finished(operation).value])
    return _finished(graph)


def _configurations(graph: c_void_p, device: c_void_p, mode: int) -> Iterator[tuple[c_void_p, c_void_p]]:
    """Yield the configurations of a heuristic, each with its engine."""
    heuristic = _made(_HEURISTIC)
    _set(heuristic, 201, _DESCRIPTOR, [graph.value])
    _set(heuristic, 200, _HEURISTIC_MODE, [mode])
    _set(heuristic, 204, _DESCRIPTOR, [device.value])
    count = c_int64()
    get = _library().cudnnBackendGetAttribute
    _checked(get(_finished(heuristic), 202, _DESCRIPTOR, c_int64(0), ctypes.byref(count), None))
    made = [_made(_CONFIGURATION) for _ in range(count.value)]
    array = (c_void_p * len(made))(*[one.value for one in made])
    _checked(get(heuristic, 202, _DESCRIPTOR, c_int64(len(made)), ctypes.byref(count), array))
    for configuration in made[: count.value]:
        engine = _made(_ENGINE)
        held = (c_void_p * 1)(engine.value)
        _checked(get(configuration, 300, _DESCRIPTOR, c_int64(1), ctypes.byref(count), held))
        yield configuration, engine


def _workspace(configuration: c_void_p, device: c_void_p) -> int:
    plan = _made(_PLAN)
    _set(plan, 401, _DESCRIPTOR, [configuration.value])
    _set(plan, 407, _DESCRIPTOR, [device.value])
    return _number(_finished(plan), 402)
