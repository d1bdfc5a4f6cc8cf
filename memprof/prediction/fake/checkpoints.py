"""`torch.save` and `torch.load` for tensors without memory. The file keeps their shapes and the storages they share.

Files from other programs are read without their numbers too: they are mapped into memory, and their tensors are
replaced by fake ones. Of a safetensors file only the header is read. Its tensors take no memory of PyTorch's allocator,
neither here nor in real training, which maps the file.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, BinaryIO
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from memprof.prediction.fake.known_values import is_fake
from memprof.scripts.imports import after_import

if TYPE_CHECKING:
    from memprof.prediction.fake.dispatch import FakeOperators

_FEW = 1 << 12  # tensors of at most so many entries keep their values, such as a step counter
_HEAD = b"memprof tensors without memory\n"
_SAFE_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@contextmanager
def checkpoints_without_memory(mode: FakeOperators) -> Iterator[None]:
    """Make `torch.save` and `torch.load` accept fake tensors within the `with` block.

    Args:
        mode: The dispatch mode, which makes the tensors.
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

    def change_safe_open(module: Any) -> None:
        original: Any = module.safe_open
        if hasattr(original, "__wrapped__"):
            return

        @wraps(original)
        def safe_open(filename: Any, framework: Any = "pt", device: Any = "cpu", **kwargs: Any) -> Any:
            if str(framework) not in ("pt", "torch", "pytorch"):
                return original(filename, framework, device, **kwargs)
            return _SafeFile(original, filename, device, mode)

        module.safe_open = safe_open

    def change_safetensors(module: Any) -> None:
        def save_file(tensors: dict[str, Tensor], filename: Any, metadata: Any = None) -> None:
            save(dict(tensors), filename)

        module.save_file = save_file
        module.save = lambda tensors, metadata=None: _HEAD
        change_safe_open(module)

    changes = after_import({"safetensors": change_safe_open, "safetensors.torch": change_safetensors})
    with patch.object(torch, "save", save), patch.object(torch, "load", load), changes:
        yield


class _SafeFile:
    """Replaces the object that `safetensors.safe_open` returns. Its tensors have no memory.

    Args:
        open_real: The real `safe_open`, for files from other programs.
        filename: The path of the file.
        device: The device on which the tensors are wanted.
        mode: Runs the operators.
    """

    def __init__(self, open_real: Any, filename: Any, device: Any, mode: FakeOperators) -> None:
        self._device = torch.device("cuda", device) if isinstance(device, int) else device
        self._mode = mode
        self._ours: dict[str, Tensor] | None = None
        with open(filename, "rb") as file:
            if _is_ours(file):
                self._ours = ShapeUnpickler(file).load()
                return
        self._file = open_real(filename, "pt", "cpu")
        self._mapped = mode.map_file(os.path.getsize(filename))

    def __enter__(self) -> _SafeFile:
        return self

    def __exit__(self, *error: object) -> None:
        if self._ours is None:
            self._file.__exit__(*error)

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._file.keys() if self._ours is None else self._ours)

    def offset_keys(self) -> list[str]:
        """Return the names of the tensors in the order in which they lie in the file."""
        return list(self._file.offset_keys()) if self._ours is None else self.keys()

    def metadata(self) -> dict[str, str] | None:
        """Return the metadata in the header of the file."""
        return self._file.metadata() if self._ours is None else {"format": "pt"}

    def get_tensor(self, name: str) -> Tensor:
        """Return the whole tensor of a name."""
        return self.part(name, ...)

    def get_tensors(self, names: list[str] | None = None) -> dict[str, Tensor]:
        """Return the tensors of some names, or all tensors, by name."""
        return {name: self.get_tensor(name) for name in (self.keys() if names is None else names)}

    def get_slice(self, name: str) -> _SafeSlice:
        """Return an object that reads parts of a tensor."""
        return _SafeSlice(self, name, *self.header_of(name))

    def header_of(self, name: str) -> tuple[list[int], str]:
        """Return the shape of a tensor and the name of its type in the file."""
        if self._ours is not None:
            tensor = self._ours[name]
            return list(tensor.shape), next(key for key, dtype in _SAFE_DTYPES.items() if dtype is tensor.dtype)
        header = self._file.get_slice(name)
        return header.get_shape(), header.get_dtype()

    def part(self, name: str, key: Any) -> Tensor:
        """Return the part of a tensor that an index selects."""
        if self._ours is not None:
            return _moved(self._ours[name][key], self._device)  # type: ignore[no-any-return]
        shape, code = self.header_of(name)
        dtype = _SAFE_DTYPES.get(code)
        whole = torch.empty(shape, dtype=dtype, device="meta")
        if dtype is None or (not dtype.is_floating_point and whole.numel() <= _FEW):
            with _disable_current_modes():
                return _moved(self._file.get_slice(name)[key], self._device)  # type: ignore[no-any-return]
        return _moved(self._mode.from_file(self._mapped, whole[key].shape, dtype), self._device)  # type: ignore[no-any-return]


class _SafeSlice:
    """Replaces the object that `get_slice` returns, which reads a part of a tensor when it is indexed."""

    def __init__(self, file: _SafeFile, name: str, shape: list[int], code: str) -> None:
        self._file, self._name, self._shape, self._code = file, name, shape, code

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        return self._shape

    def get_dtype(self) -> str:
        """Return the name of the tensor's type in the file."""
        return self._code

    def __getitem__(self, key: Any) -> Tensor:
        return self._file.part(self._name, key)


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
        """Return the description of a tensor that is written in its place; None for an object that is written whole."""
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
    """Makes new tensors from what `ShapePickler` wrote. Tensors that shared a storage share one again.

    Args:
        file: The file, behind the mark at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._storages: dict[tuple[int, torch.dtype], Tensor] = {}

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a new tensor with the geometry that was written, and with its values if they were kept."""
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
