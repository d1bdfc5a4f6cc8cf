"""`torch.save` and `torch.load` for tensors without memory. The file keeps their shapes and the storages they share.

Files from other programs are read without their numbers too: they are mapped into memory, and their tensors are
replaced by fake ones.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from memprof.prediction.fake.known_values import is_fake
from memprof.scripts.imports import after_import

if TYPE_CHECKING:
    from memprof.prediction.fake.dispatch import FakeOperators

_FEW = 1 << 12  # entries whose values are kept, as those of a step counter
_HEAD = b"memprof tensors without memory\n"


@contextmanager
def checkpoints_without_memory(mode: FakeOperators) -> Iterator[None]:
    """Make `torch.save` and `torch.load` accept fake tensors within the `with` block.

    Args:
        mode: Runs the operators.
    """
    load_real: Any = torch.load

    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(f, (str, os.PathLike)):
            with open(f, "wb") as file:
                _write(obj, file)
        else:
            _write(obj, f)

    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(f, (str, os.PathLike)):
            with open(f, "rb") as file:
                ours = _is_ours(file)
                if ours:
                    return _moved(ShapeUnpickler(file).load(), map_location)
            return _moved(_real(lambda: _mapped(load_real, f, kwargs)), map_location)
        if _is_ours(f):
            return _moved(ShapeUnpickler(f).load(), map_location)
        return _moved(_real(lambda: load_real(f, "cpu", *args, **kwargs)), map_location)

    def _real(read: Any) -> Any:
        with _disable_current_modes():
            value = read()
        return _without_memory(value, {})

    def change_safetensors(module: Any) -> None:
        load_file = module.load_file

        def save_file(tensors: dict[str, Tensor], filename: Any, metadata: Any = None) -> None:
            save(dict(tensors), filename)

        def read_file(filename: Any, device: Any = "cpu") -> dict[str, Tensor]:
            with open(filename, "rb") as file:
                if _is_ours(file):
                    return _moved(ShapeUnpickler(file).load(), str(device))  # type: ignore[no-any-return]
            return _moved(_real(lambda: load_file(filename)), str(device))  # type: ignore[no-any-return]

        module.save_file, module.load_file = save_file, read_file
        module.save = lambda tensors, metadata=None: _HEAD

    changes = after_import({"safetensors.torch": change_safetensors})
    with patch.object(torch, "save", save), patch.object(torch, "load", load), changes:
        yield


def _mapped(load_real: Any, file: Any, kwargs: dict[str, Any]) -> Any:
    try:
        return load_real(file, "cpu", **{**kwargs, "mmap": True})
    except RuntimeError:  # the file is older than PyTorch 1.6
        return load_real(file, "cpu", **{**kwargs, "mmap": False})


def _is_ours(file: Any) -> bool:
    place = file.tell()
    ours: bool = file.read(len(_HEAD)) == _HEAD
    if not ours:
        file.seek(place)
    return ours


def _write(value: Any, file: BinaryIO) -> None:
    made = io.BytesIO()
    ShapePickler(made).dump(value)
    file.write(_HEAD + made.getvalue())


class ShapePickler(pickle.Pickler):
    """Writes the geometry of each tensor and the identity of its storage."""

    def persistent_id(self, obj: Any) -> Any:
        """Return what is written of a tensor; None for what is written whole."""
        if not isinstance(obj, Tensor) or type(obj) not in (Tensor, nn.Parameter):
            return None
        values = None
        storage = obj.untyped_storage()
        whole = obj.is_contiguous() and obj.numel() * obj.element_size() == storage.nbytes()
        if whole and obj.numel() <= _FEW and not is_fake(obj):
            with _disable_current_modes():
                values = obj.detach().flatten().tolist()
        geometry = (tuple(obj.shape), obj.stride(), obj.storage_offset(), obj.dtype)
        kind = (isinstance(obj, nn.Parameter), obj.requires_grad, bool(obj.is_cuda))
        return storage._cdata, storage.nbytes(), geometry, kind, values


class ShapeUnpickler(pickle.Unpickler):
    """Makes new tensors. Tensors that shared a storage share one again."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._storages: dict[tuple[int, torch.dtype], Tensor] = {}

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a tensor that looks as what was written."""
        key, size, (shape, stride, offset, dtype), (parameter, trained, on_device), values = pid
        device = "cuda" if on_device else None
        whole = self._storages.get((key, dtype))
        if whole is None:
            if values is not None:
                whole = torch.tensor(values, dtype=dtype, device=device)
            else:
                whole = torch.empty(size // dtype.itemsize, dtype=dtype, device=device)
            self._storages[key, dtype] = whole
        made = whole.as_strided(shape, stride, offset)
        return nn.Parameter(made, requires_grad=trained) if parameter else made.requires_grad_(trained)


def _without_memory(value: Any, made: dict[int, Tensor]) -> Any:
    """Return a nest with fake tensors in place of real ones. Tensors that shared a storage share one again."""
    if isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter) and value.is_floating_point():
        storage = value.untyped_storage()
        whole = made.get(storage._cdata)
        if whole is None:
            whole = made[storage._cdata] = torch.empty(storage.nbytes() // value.element_size(), dtype=value.dtype)
        part = whole.as_strided(value.shape, value.stride(), value.storage_offset())
        if isinstance(value, nn.Parameter):
            return nn.Parameter(part, requires_grad=value.requires_grad)
        return part
    if isinstance(value, dict):
        for key in list(value):
            with suppress(TypeError):
                value[key] = _without_memory(value[key], made)
        return value
    if isinstance(value, list):
        value[:] = [_without_memory(item, made) for item in value]
        return value
    if type(value) is tuple:
        return tuple(_without_memory(item, made) for item in value)
    return value


def _moved(value: Any, location: Any) -> Any:
    """Return a nest with its tensors on the device that `map_location` names."""
    if location is None or not isinstance(location, (str, torch.device)):
        return value
    if isinstance(value, Tensor):
        return value.to(location)
    if isinstance(value, dict):
        for key in list(value):
            value[key] = _moved(value[key], location)
        return value
    if isinstance(value, list):
        value[:] = [_moved(item, location) for item in value]
        return value
    return tuple(_moved(item, location) for item in value) if type(value) is tuple else value
