"""Runs operators on fake tensors. They compute nothing; only their allocations and frees are noted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from memprof.errors import MemprofError, UsageError
from memprof.prediction.fake.accumulation import IN_PLACE, Accumulation, in_place_twin
from memprof.prediction.fake.assumed_values import expect, expected_of
from memprof.prediction.fake.data_sizes import LARGEST
from memprof.prediction.fake.device import KernelMemory, PlainDevice
from memprof.prediction.fake.event_log import EventLog
from memprof.prediction.fake.higher_order import composed, is_higher_order
from memprof.prediction.fake.known_values import (
    also_written,
    forget,
    geometry_of,
    is_fake,
    is_worth_computing,
    kind_of,
    name_of,
    parts_of,
    resizes_outputs,
    returns_of,
    shape_depends_on_values,
    written_places,
)
from memprof.prediction.fake.tensors import HOST_MARK, FakeTensors, Layout, Result, contiguous_result, tensors_in
from memprof.prediction.fake.value_reads import Reads
from memprof.trace.events import OperatorBegin, OperatorEnd

aten = torch.ops.aten
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Plan = Callable[[Any, Args, Kwargs], Any]
_T = TypeVar("_T")

_PLAIN = frozenset((Tensor, nn.Parameter))
_CPU = torch.device("cpu")
_MOST_DATA = 256 << 20
_KNOWN_FACTORIES = {aten.arange.default, aten.arange.start, aten.arange.start_step, aten.eye.default, aten.eye.m}
_FILE_MARK = "_memprof_file"  # the attribute that keeps the storage of the mapped file alive
_HERE = (None, _CPU)


class _Where(threading.local):
    """Where a thread makes its tensors: whether on the host, or None to follow the operator's inputs."""

    host: bool | None = None


class FakeOperators(TorchDispatchMode):
    """Intercepts every operator below autograd, as the tracker of a measured step does.

    Args:
        log: The log that notes every storage.
        reads: Chooses a value when the program reads one that is not known.
        device: The simulated device.
        accumulation: Recognises the gradients that autograd accumulates in place; None to make a new one.

    Attributes:
        own_host: Whether the device has its own memory, so that tensors made of Python numbers are on the host.
        phase: The phase of the training step.
        place: Returns the module that is running, and whether it is recomputed.
        operators_of: The names of the operators that ran, by phase.
        refusal: The error of the first operator that cannot be predicted, as the program may have caught it; or None.
    """

    def __init__(
        self, log: EventLog, reads: Reads, device: PlainDevice, accumulation: Accumulation | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = log
        self.reads = reads
        self.own_host = log.strangers_on_host = device.own_host
        self.phase = "build"
        self._where = _Where()
        self._lock = threading.RLock()  # one operator at a time, whichever thread runs it
        self.place: Callable[[], tuple[str, bool]] = lambda: ("", False)
        self.operators_of: dict[str, set[str]] = {}
        self.refusal: MemprofError | None = None
        self.accumulation = accumulation or Accumulation(_exclusive_counts())
        self._tensors = FakeTensors(log, device.corrections, device.results)
        self._workspaces = device.workspaces()
        self._plans: dict[Any, Plan] = dict.fromkeys(LARGEST, self._largest)
        self._results: dict[Any, Result] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        if types and not _PLAIN.issuperset(types):
            return NotImplemented  # a tensor subclass unwraps itself, and its inner tensors come here again
        if func in IN_PLACE and self.accumulation.is_in_place(func, args):
            self._take_scratch(in_place_twin(func), args, kwargs or {})
            return args[0]
        if kwargs and kwargs.get("device") not in _HERE:
            return self._elsewhere(func, args, kwargs)
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = self._choose(func)
        self.operators_of.setdefault(self.phase, set()).add(name_of(func))
        try:
            with self._lock:
                return plan(func, args, kwargs or {})
        except MemprofError as error:
            self.refusal = self.refusal or error
            raise

    supports_higher_order_operators = True  # otherwise PyTorch refuses them before they come here

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, so that PyTorch does not wrap `__torch_dispatch__`, which would import all of torch._dynamo."""
        return False

    @contextmanager
    def made_on(self, *, host: bool) -> Iterator[None]:
        """Make the tensors of the `with` block in the memory of the host, or of the device.

        Args:
            host: Whether the tensors are on the host, if the device has its own memory.
        """
        before, self._where.host = self._where.host, host and self.own_host
        try:
            yield
        finally:
            self._where.host = before

    def on_host(self, tensor: Tensor) -> bool:
        """Return whether a tensor is in the host's memory; always False if the device has no memory of its own."""
        if not self.own_host:
            return False
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        return self.log.is_host(address) if address else hasattr(storage, HOST_MARK)

    @property
    def workspaces(self) -> KernelMemory | None:
        """The memory that kernels take for themselves; None if they take no memory."""
        return self._workspaces

    @property
    def doubts(self) -> list[str]:
        """One sentence for each operator whose kernel takes an unknown amount of memory for itself."""
        return self._workspaces.doubts if self._workspaces is not None else []

    def add_plans(self, plans: Mapping[Any, Plan]) -> None:
        """Run operators by other plans than their schemas give.

        Args:
            plans: The plan of each operator.
        """
        self._plans.update(plans)

    def run_real(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Run the kernel of an operator without input tensors, so that the values of its outputs are known."""
        return self._run(func, args, kwargs, [])

    def run_fake(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Make the outputs of an operator without input tensors. Their values are unknown."""
        return self._make(func, args, kwargs)

    def run_known(self, func: Any, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> Any:
        """Run the kernel of an operator whose input values are all known, so that its outputs are known too."""
        return self._run(func, args, kwargs, tensors)

    def run_as(self, func: Any, args: Args, kwargs: Kwargs, result: Result) -> Any:
        """Make the outputs of an operator as a given result describes them."""
        return self._made(func, args, kwargs, result)

    def _choose(self, func: Any) -> Plan:
        """Return the plan that runs an operator, which follows from the outputs in its schema."""
        special = self._special(func)
        if special is not None:
            return special
        if is_higher_order(func):
            return self._compose
        plans = {"view": self._view, "write": self._write, "empty": self._make, "compute": self._compute}
        return plans[kind_of(func)]

    def _special(self, func: Any) -> Plan | None:
        return {
            aten.lift_fresh.default: self._lift,
            aten._local_scalar_dense.default: self._item,
            aten.equal.default: self._equal,
            aten.index.Tensor: self._index,
            aten.index_put_.default: self._index,
            aten.index_put.default: self._index,
            aten.resize_.default: self._resize,
        }.get(func)

    def _elsewhere(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Run an operator with a `device` argument. `meta` has no memory; any other device is the simulated one."""
        if torch.device(kwargs["device"]).type == "meta":
            return func(*args, **kwargs)
        with self.made_on(host=False):
            return self.__torch_dispatch__(func, (), args, {**kwargs, "device": _CPU})

    def map_file(self, size: int) -> torch.UntypedStorage:
        """Return the storage of a file that is mapped into the host's memory.

        Args:
            size: The size of the file in bytes.
        """
        return self._tensors.map_file(size, self.own_host)

    def from_file(self, file: torch.UntypedStorage, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor whose values lie in a mapped file. The tensor keeps the storage of the file alive.

        Args:
            file: The storage of the file, from `map_file`.
            size: The shape of the tensor.
            dtype: Its type.
        """
        plain = torch.empty(size, dtype=dtype, device="meta")
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            (made,), _ = self._tensors.build(contiguous_result((plain,)), True)
        setattr(made.untyped_storage(), _FILE_MARK, file)
        return made  # type: ignore[no-any-return]

    # How operators run

    def _view(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Run a real view operator, as it only changes the geometry."""
        self.place()  # this learns the autograd node of the view
        return func(*args, **kwargs)

    def _compose(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        with self.reads.explained(name_of(func), self.place()[0]):
            return composed(self, func, args, kwargs)

    def _lift(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Note a tensor that Python has made of numbers."""
        self._watch(args[0], self.own_host)
        if self.own_host and not args[0].numel():
            setattr(args[0].untyped_storage(), HOST_MARK, True)
        return func(*args, **kwargs)

    def _largest(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Run an operator whose output size depends on values. If they are unknown, make the largest output."""
        tensors = tensors_in(args)
        if not any(map(is_fake, tensors)):
            return self.run_known(func, args, kwargs, tensors)
        what = f"runs {name_of(func)}, whose output depends on the data: its largest is counted"
        self.reads.guess_here(self.place()[0], what)
        return self.run_as(func, args, kwargs, LARGEST[func](args, kwargs))

    def _write(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Run an operator that returns only arguments that it writes to."""
        tensors = tensors_in((*args, *kwargs.values()))
        if not any(map(is_fake, tensors)):
            return self._run(func, args, kwargs, tensors)
        written = [args[place] if place < len(args) else kwargs.get(name) for place, name in written_places(func)]
        forget(func, tensors_in(written))
        if resizes_outputs(func):
            for place, layout in self._result(func, args, kwargs).resized:
                self._move(tensors[place], layout)
        self._take_scratch(func, args, kwargs)
        returns = returns_of(func)
        return tuple(written[:returns]) if returns > 1 else written[0] if returns else None

    def _make(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Make fake outputs."""
        result = self._result(func, args, kwargs)
        if result.aliases:
            return func(*args, **kwargs)
        if not result.storages:
            return result.shape
        made = self._made(func, args, kwargs, result)
        if result.kind == "booleans" or result.entries == 1:
            expect(made, func, args)
        return made

    def _compute(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Make fake outputs; or real ones if all inputs are known and the outputs are small."""
        tensors = tensors_in((*args, *kwargs.values()) if kwargs else args)
        for tensor in tensors:
            if is_fake(tensor):
                forget(func, also_written(func, args))
                return self._make(func, args, kwargs)
        return self._compute_known(func, args, kwargs, tensors)

    def _compute_known(self, func: Any, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> Any:
        if shape_depends_on_values(func) or self._is_computed(func, args, kwargs, tensors):
            return self._run(func, args, kwargs, tensors)
        return self._make(func, args, kwargs)

    def _is_computed(self, func: Any, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> bool:
        """Return whether an operator whose input values are all known runs its real kernel."""
        data = self._prepares_data(func, tensors)
        try:
            result = self._result(func, args, kwargs)
        except UsageError:
            if self.own_host and not data:
                raise
            if not self.own_host:
                what = f"runs {name_of(func)} on known values: what it takes for itself meanwhile is not counted"
                self.reads.guess_here(self.place()[0], what)
            return True
        return is_worth_computing(result) or (data and sum(result.storages) <= _MOST_DATA)

    def _prepares_data(self, func: Any, tensors: list[Tensor]) -> bool:
        """Return whether an operator prepares data on the host, where it runs for real, as only the GPU is simulated.

        Making weights is not preparing data: weights come from `empty` or from random numbers, without input tensors.
        """
        if not self.own_host or self._where.host is False:
            return False
        if not tensors:
            return bool(self._where.host) and func in _KNOWN_FACTORIES
        return self._on_host(tensors)

    def _item(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Read a value: the real one if it is known, otherwise the one that `reads` chooses."""
        if not is_fake(args[0]):
            return func(*args, **kwargs)
        return self.reads.value(args[0].dtype, name_of(func), self.place()[0], self.phase, expected_of(args[0]))

    def _equal(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        if not any(map(is_fake, args)):
            return func(*args, **kwargs)
        return self.reads.value(torch.bool, name_of(func), self.place()[0], self.phase)

    def _index(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Index by tensors. A mask is turned into positions, whose number decides the shape: at most all entries."""
        indices: list[Tensor | None] = []
        if func is aten.index_put_.default and self._fills(*args):
            return self._write(func, args, kwargs)
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                indices.append(index)
            elif is_fake(index):
                with self:  # the positions take memory too
                    indices += aten.nonzero(index).unbind(1)
            else:
                indices += index.nonzero().unbind(1)
        plan = self._write if func is aten.index_put_.default else self._compute
        return plan(func, (args[0], indices, *args[2:]), kwargs)

    def _fills(self, tensor: Tensor, indices: list[Tensor | None], value: Tensor, accumulate: bool = False) -> bool:
        """Return whether one number is written where one mask is true, which PyTorch does without positions.

        The conditions are those of `canDispatchToMaskedFill` in aten/src/ATen/native/TensorAdvancedIndexing.cpp.
        """
        given = [index for index in indices if index is not None]
        one_mask = len(given) == 1 and given[0].dtype in (torch.bool, torch.uint8)
        return one_mask and not accumulate and value.numel() == 1 and (not self.own_host or self._on_host([value]))

    def _resize(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Change a tensor's size, within its storage if that is large enough."""
        tensor = args[0]
        if not is_fake(tensor):
            return self._run(func, args, kwargs, [tensor])
        plain = torch.empty(args[1], dtype=tensor.dtype, device="meta")
        if plain.untyped_storage().nbytes() <= tensor.untyped_storage().nbytes():
            return tensor.as_strided_(plain.shape, plain.stride())
        self._move(tensor, Layout(tuple(plain.shape), plain.stride(), tensor.dtype, 0, 0))
        return tensor

    # Parts

    def _run(self, func: Any, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> Any:
        """Run the real kernel on known values, and note the new storages."""
        output = func(*args, **kwargs)
        fresh = [part for tensor in tensors_in((output,)) for part in parts_of(tensor) if self._is_new(part)]
        host = self._on_host(tensors) if self._where.host is None else self._where.host

        def watch() -> None:
            for tensor in fresh:
                self._watch(tensor, host)

        if fresh:
            self._begin(func)
            if tensors and not host:
                self._with_scratch(func, args, kwargs, watch)
            else:
                watch()
            self.log.mark(OperatorEnd([tensor.untyped_storage().data_ptr() for tensor in fresh]))
        elif tensors and not host:
            self._take_scratch(func, args, kwargs)
        return output

    def _made(self, func: Any, args: Args, kwargs: Kwargs, result: Result) -> Any:
        self._begin(func)
        host = self._on_host(tensors_in(args)) if self._where.host is None else self._where.host
        if host:
            output, addresses = self._tensors.build(result, host)
        else:
            made = sum(result.storages)
            output, addresses = self._with_scratch(func, args, kwargs, lambda: self._tensors.build(result), made)
        self.log.mark(OperatorEnd(addresses))
        return output

    def _take_scratch(self, func: Any, args: Args, kwargs: Kwargs) -> None:
        """Note the memory that the kernel of an operator without new outputs takes for itself."""
        if self._workspaces is not None and self._workspaces.takes(func):
            self._begin(func)
            self._with_scratch(func, args, kwargs, lambda: None)
            self.log.mark(OperatorEnd([]))

    def _with_scratch(self, func: Any, args: Args, kwargs: Kwargs, make: Callable[[], _T], made: int = 0) -> _T:
        """Make the outputs, and note the memory that the kernel takes for itself and frees or keeps."""
        if self._workspaces is None or not self._workspaces.takes(func):
            return make()
        kept = self._workspaces.kept(func, torch._C._current_autograd_node() is not None)
        if kept:
            self.log.workspace(kept)
        return self.log.scratch(self._workspaces.scratch(func, args, kwargs, made), make)

    def _begin(self, func: Any) -> None:
        self.log.mark(OperatorBegin(name_of(func), *self.place()))

    def _result(self, func: Any, args: Args, kwargs: Kwargs) -> Result:
        key = (func, torch.get_default_dtype(), geometry_of(args), geometry_of(kwargs.items()) if kwargs else None)
        result = self._results.get(key)
        if result is None:
            with self.reads.explained(name_of(func), self.place()[0]):
                result = self._results[key] = self._tensors.evaluate(func, args, kwargs)
        return result

    def _move(self, tensor: Tensor, layout: Layout) -> None:
        """Give a tensor a new storage of its own."""
        plain = torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype, device="meta")
        one = Layout(layout.size, layout.stride, layout.dtype, 0, 0)
        (other,), _ = self._tensors.build(Result((plain.untyped_storage().nbytes(),), (one,)), bool(self._where.host))
        tensor.set_(other)

    def _is_new(self, tensor: Tensor) -> bool:
        address = tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
        return bool(address) and not self.log.knows(address)

    def _watch(self, tensor: Tensor, host: bool) -> None:
        if self._is_new(tensor):
            storage = tensor.untyped_storage()
            self.log.allocated(storage, storage.data_ptr(), storage.nbytes(), host)

    def _on_host(self, tensors: list[Tensor]) -> bool:
        for tensor in tensors:
            if not all(map(self.on_host, parts_of(tensor))):
                return False
        return bool(tensors)


@cache
def _exclusive_counts() -> tuple[int, ...] | None:
    """Learn the reference counts in a separate mode, so that the log of the training stays untouched."""
    accumulation = Accumulation()
    with FakeOperators(EventLog(), Reads(), PlainDevice(), accumulation):
        accumulation.learn()
    return accumulation.exclusive
