"""Streams and events of a simulated GPU: PyTorch's own classes, on base classes that keep the current stream.

`torch/cuda/streams.py` is run a second time with these base classes in place of those of a build with CUDA. So a
program gets the `Stream` and `Event` of its own PyTorch version. Waiting changes no memory and returns at once. The
caching allocator keeps the blocks of each stream apart, so the event log notes the stream of every allocation.

Private API of PyTorch, checked on 2.13.0: `torch._C._CudaStreamBase`, `torch._C._CudaEventBase`, and the
arguments with which `torch.Stream` is made from its numbers.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from memprof.prediction.cuda.refusals import refuse
from memprof.prediction.fake.event_log import EventLog

CUDA_TYPE = 1  # `c10::DeviceType::CUDA`
_STREAMS_PER_POOL = 32  # `kStreamsPerPool` in c10/cuda/CUDAStream.cpp; the 33rd stream is the first again


class Streams:
    """The streams of one GPU.

    Args:
        log: The log that notes the stream of every allocation.
        index: The index of the GPU.

    Attributes:
        index: The index of the GPU.
        module: A copy of the module `torch.cuda.streams` that uses these streams.
    """

    def __init__(self, log: EventLog, index: int) -> None:
        self._log = log
        self._pools = {False: itertools.cycle(range(1, 1 + _STREAMS_PER_POOL)), True: itertools.cycle(range(33, 65))}
        self.index = index
        self.module = self._module()

    @property
    def current(self) -> int:
        """The number of the current stream; 0 is the default stream."""
        return self._log.stream

    @current.setter
    def current(self, number: int) -> None:
        self._log.stream = number

    def numbers(self, stream: int) -> tuple[int, int, int]:
        """Return the stream, its device and the device's type, as `torch._C._cuda_getCurrentStream` does."""
        return stream, self.index, CUDA_TYPE

    def _module(self) -> ModuleType:
        source = importlib.util.find_spec("torch.cuda.streams")
        assert source is not None
        assert source.loader is not None
        module = importlib.util.module_from_spec(source)
        bases: dict[str, Any] = {"_CudaStreamBase": self._stream_base(), "_CudaEventBase": self._event_base()}
        with patch.multiple(torch._C, create=True, **bases):
            source.loader.exec_module(module)
        return module

    def _stream_base(self) -> type:
        streams = self

        class StreamBase(torch.Stream):
            """The base class of `torch.cuda.Stream`."""

            def __new__(
                cls,
                device: Any = None,
                priority: int = 0,
                stream_id: int | None = None,
                device_index: int | None = None,
                device_type: int = CUDA_TYPE,
                stream_ptr: int | None = None,
            ) -> Any:
                if stream_ptr is not None:
                    refuse("torch.cuda.ExternalStream", "there is no stream of another library")
                number = next(streams._pools[priority < 0]) if stream_id is None else stream_id
                return super().__new__(cls, stream_id=number, device_index=streams.index, device_type=CUDA_TYPE)

            @property
            def cuda_stream(self) -> int:
                return self.stream_id

            @property
            def priority(self) -> int:
                return -1 if self.stream_id > _STREAMS_PER_POOL else 0

            @staticmethod
            def priority_range() -> tuple[int, int]:
                return 0, -5

            def query(self) -> bool:
                return True

            def is_capturing(self) -> bool:
                return False

            def synchronize(self) -> None:
                pass

            def __enter__(self) -> Any:
                self.__dict__.setdefault("_outer", []).append(streams.current)
                streams.current = self.stream_id
                return self

            def __exit__(self, *exception: object) -> None:
                streams.current = self.__dict__["_outer"].pop()

        return StreamBase

    def _event_base(self) -> type:
        streams = self

        class EventBase(torch.Event):
            """The base class of `torch.cuda.Event`. The time between two events is measured with the host's clock."""

            _recorded: float | None = None
            _timed = False

            def __new__(
                cls,
                enable_timing: bool = False,
                blocking: bool = False,
                interprocess: bool = False,
                external: bool = False,
            ) -> Any:
                made: Any = super().__new__(cls, "cpu", enable_timing=enable_timing)
                made._timed = enable_timing
                return made

            @property
            def device(self) -> torch.device:  # type: ignore[override]  # the stub declares it writable
                return torch.device("cuda", streams.index)

            @property
            def cuda_event(self) -> int:
                return 0 if self._recorded is None else id(self)

            def record(self, stream: Any = None) -> None:
                self._recorded = time.perf_counter()

            def wait(self, stream: Any = None) -> None:
                pass

            def query(self) -> bool:
                return True

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end_event: Any) -> Any:
                if not (self._timed and end_event._timed):
                    raise ValueError("Both events must be created with argument 'enable_timing=True'.")
                if self._recorded is None or end_event._recorded is None:
                    raise ValueError("Both events must be recorded before calculating elapsed time.")
                return (end_event._recorded - self._recorded) * 1000

            def ipc_handle(self) -> Any:
                refuse("torch.cuda.Event.ipc_handle", "events are not shared with other processes")

        return EventBase
