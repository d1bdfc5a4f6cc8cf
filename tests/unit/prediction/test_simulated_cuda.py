"""The GPU that a program sees in a prediction: every question of `torch.cuda` has an answer or a sentence."""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from memprof.allocator.caching import CachingAllocator
from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.devices.target import Target
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.prediction.cuda.refusals import REFUSED, REFUSED_OF_ACCELERATOR, REFUSED_OF_MEMORY, Refusal
from memprof.prediction.cuda.semantics import CudaSemantics
from memprof.prediction.fake.dispatch import FakeOperators
from memprof.prediction.fake.event_log import EventLog
from memprof.prediction.fake.value_reads import Reads
from memprof.prediction.replay_trace import replay_blocks
from memprof.prediction.run import predict_runs
from memprof.trace.attribution import build_trace
from memprof.trace.events import Allocation, Trace

RTX_4090 = target_of(find_device("rtx-4090"))
GIB = 1 << 30

# A call of each public function and class of torch.cuda that is answered, and what is no question at all.
ANSWERED: dict[str, Callable[[], Any]] = {
    "AcceleratorError": lambda: torch.cuda.AcceleratorError("x"),
    "BFloat16Tensor": lambda: torch.cuda.BFloat16Tensor(2),
    "BoolTensor": lambda: torch.cuda.BoolTensor(2),
    "ByteTensor": lambda: torch.cuda.ByteTensor(2),
    "CharTensor": lambda: torch.cuda.CharTensor(2),
    "CudaError": lambda: torch.cuda.CudaError(2),
    "DeferredCudaCallError": lambda: torch.cuda.DeferredCudaCallError(),
    "DoubleTensor": lambda: torch.cuda.DoubleTensor(2),
    "Event": lambda: torch.cuda.Event(enable_timing=True),
    "FloatTensor": lambda: torch.cuda.FloatTensor([1.0]),
    "HalfTensor": lambda: torch.cuda.HalfTensor(2),
    "IntTensor": lambda: torch.cuda.IntTensor(2),
    "LongTensor": lambda: torch.cuda.LongTensor(2),
    "OutOfMemoryError": lambda: torch.cuda.OutOfMemoryError("x"),
    "ShortTensor": lambda: torch.cuda.ShortTensor(2),
    "Stream": lambda: torch.cuda.Stream(priority=-1),
    "StreamContext": lambda: torch.cuda.StreamContext(torch.cuda.Stream()),
    "can_device_access_peer": lambda: torch.cuda.can_device_access_peer(0, 0),
    "check_error": lambda: torch.cuda.check_error(0),
    "cudaStatus": lambda: torch.cuda.cudaStatus.SUCCESS,
    "cudart": lambda: torch.cuda.cudart().cudaMemGetInfo(0),
    "current_device": lambda: torch.cuda.current_device(),
    "current_stream": lambda: torch.cuda.current_stream(),
    "default_stream": lambda: torch.cuda.default_stream(),
    "device": lambda: torch.cuda.device(0).__enter__(),
    "device_count": lambda: torch.cuda.device_count(),
    "device_memory_used": lambda: torch.cuda.device_memory_used(),
    "device_of": lambda: torch.cuda.device_of(torch.zeros(1, device="cuda")).__enter__(),
    "empty_cache": lambda: torch.cuda.empty_cache(),
    "get_allocator_backend": lambda: torch.cuda.get_allocator_backend(),
    "get_arch_list": lambda: torch.cuda.get_arch_list(),
    "get_device_capability": lambda: torch.cuda.get_device_capability(),
    "get_device_name": lambda: torch.cuda.get_device_name("cuda"),
    "get_device_properties": lambda: torch.cuda.get_device_properties(torch.device("cuda", 0)),
    "get_gencode_flags": lambda: torch.cuda.get_gencode_flags(),
    "get_per_process_memory_fraction": lambda: torch.cuda.get_per_process_memory_fraction(),
    "get_rng_state": lambda: torch.cuda.get_rng_state(),
    "get_rng_state_all": lambda: torch.cuda.get_rng_state_all(),
    "get_sync_debug_mode": lambda: torch.cuda.get_sync_debug_mode(),
    "init": lambda: torch.cuda.init(),
    "initial_seed": lambda: torch.cuda.initial_seed(),
    "ipc_collect": lambda: torch.cuda.ipc_collect(),
    "is_available": lambda: torch.cuda.is_available(),
    "is_bf16_supported": lambda: torch.cuda.is_bf16_supported(),
    "is_current_stream_capturing": lambda: torch.cuda.is_current_stream_capturing(),
    "is_initialized": lambda: torch.cuda.is_initialized(),
    "is_tf32_supported": lambda: torch.cuda.is_tf32_supported(),
    "list_gpu_processes": lambda: torch.cuda.list_gpu_processes(),
    "manual_seed": lambda: torch.cuda.manual_seed(0),
    "manual_seed_all": lambda: torch.cuda.manual_seed_all(0),
    "max_memory_allocated": lambda: torch.cuda.max_memory_allocated(),
    "max_memory_cached": lambda: torch.cuda.max_memory_cached(),
    "max_memory_reserved": lambda: torch.cuda.max_memory_reserved("cuda:0"),
    "mem_get_info": lambda: torch.cuda.mem_get_info(),
    "memory_allocated": lambda: torch.cuda.memory_allocated(0),
    "memory_cached": lambda: torch.cuda.memory_cached(),
    "memory_reserved": lambda: torch.cuda.memory_reserved(),
    "memory_stats": lambda: torch.cuda.memory_stats(),
    "memory_stats_as_nested_dict": lambda: torch.cuda.memory_stats_as_nested_dict(),
    "memory_summary": lambda: torch.cuda.memory_summary(),
    "reset_accumulated_host_memory_stats": lambda: torch.cuda.reset_accumulated_host_memory_stats(),
    "reset_accumulated_memory_stats": lambda: torch.cuda.reset_accumulated_memory_stats(),
    "reset_max_memory_allocated": lambda: torch.cuda.reset_max_memory_allocated(),
    "reset_max_memory_cached": lambda: torch.cuda.reset_max_memory_cached(),
    "reset_peak_host_memory_stats": lambda: torch.cuda.reset_peak_host_memory_stats(),
    "reset_peak_memory_stats": lambda: torch.cuda.reset_peak_memory_stats(),
    "seed": lambda: torch.cuda.seed(),
    "seed_all": lambda: torch.cuda.seed_all(),
    "set_device": lambda: torch.cuda.set_device("cuda:0"),
    "set_per_process_memory_fraction": lambda: torch.cuda.set_per_process_memory_fraction(1.0),
    "set_rng_state": lambda: torch.cuda.set_rng_state(torch.cuda.get_rng_state()),
    "set_rng_state_all": lambda: torch.cuda.set_rng_state_all(torch.cuda.get_rng_state_all()),
    "set_stream": lambda: torch.cuda.set_stream(torch.cuda.default_stream()),
    "set_sync_debug_mode": lambda: torch.cuda.set_sync_debug_mode("warn"),
    "stream": lambda: torch.cuda.stream(torch.cuda.Stream()).__enter__(),
    "synchronize": lambda: torch.cuda.synchronize(),
}
NO_QUESTION = {"Any", "Callable", "Device", "NewType", "Optional", "Union", "List", "Tuple", "cast", "lru_cache"}
NO_QUESTION |= {"classproperty", "NVMLError", "TypeVar", "wraps", "Dict"}
OF_ACCELERATOR: dict[str, Callable[[], Any]] = {
    "current_accelerator": lambda: torch.accelerator.current_accelerator(),
    "current_device_idx": lambda: torch.accelerator.current_device_index(),
    "current_device_index": lambda: torch.accelerator.current_device_index(),
    "current_stream": lambda: torch.accelerator.current_stream(),
    "device_count": lambda: torch.accelerator.device_count(),
    "device_index": lambda: torch.accelerator.device_index(0).__enter__(),
    "empty_cache": lambda: torch.accelerator.empty_cache(),
    "empty_host_cache": lambda: torch.accelerator.empty_host_cache(),
    "get_device_capability": lambda: torch.accelerator.get_device_capability(),
    "get_memory_info": lambda: torch.accelerator.get_memory_info(),
    "is_available": lambda: torch.accelerator.is_available(),
    "max_memory_allocated": lambda: torch.accelerator.max_memory_allocated(),
    "max_memory_reserved": lambda: torch.accelerator.max_memory_reserved(),
    "memory_allocated": lambda: torch.accelerator.memory_allocated(),
    "memory_reserved": lambda: torch.accelerator.memory_reserved(),
    "memory_stats": lambda: torch.accelerator.memory_stats(),
    "reset_accumulated_memory_stats": lambda: torch.accelerator.reset_accumulated_memory_stats(),
    "reset_peak_memory_stats": lambda: torch.accelerator.reset_peak_memory_stats(),
    "set_device_idx": lambda: torch.accelerator.set_device_index(0),
    "set_device_index": lambda: torch.accelerator.set_device_index(0),
    "set_stream": lambda: torch.accelerator.set_stream(torch.accelerator.current_stream()),
    "synchronize": lambda: torch.accelerator.synchronize(),
}


@contextmanager
def gpu(target: Target = RTX_4090, limited: bool = True) -> Iterator[FakeOperators]:
    semantics = CudaSemantics(target, limited=limited)
    mode = FakeOperators(EventLog(), Reads(), semantics)
    with semantics.applied(mode), mode:
        yield mode


def public(module: Any) -> list[str]:
    """Return the names of what can be called."""
    found = [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name))]
    return [name for name in found if name not in NO_QUESTION]


# Every name is answered or refused


def test_every_name_of_torch_cuda_is_answered_or_refused() -> None:
    storages = {name for name in dir(torch.cuda) if name.endswith("Storage")}
    known = {*ANSWERED, *REFUSED, *storages}
    assert set(public(torch.cuda)) <= known
    assert not set(ANSWERED) & set(REFUSED)


@pytest.mark.parametrize("name", [name for name in ANSWERED if hasattr(torch.cuda, name)])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_is_answered(name: str) -> None:
    with gpu():
        ANSWERED[name]()


@pytest.mark.parametrize("name", [name for name in REFUSED if hasattr(torch.cuda, name)])
def test_it_is_refused_with_name_and_line(name: str) -> None:
    with gpu(), pytest.raises(UsageError) as refused:
        getattr(torch.cuda, name)()
    assert f"torch.cuda.{name} cannot be predicted" in str(refused.value)
    assert "test_simulated_cuda.py:" in str(refused.value)


def test_a_class_that_is_refused_can_still_be_named() -> None:
    with gpu():
        assert (torch.cuda.CUDAGraph | None) is not None
        assert not isinstance(3, torch.cuda.MemPool)
        assert issubclass(type("Own", (torch.cuda.CUDAGraph,), {}), torch.cuda.CUDAGraph)


def test_storages_of_the_old_kind_are_refused() -> None:
    with gpu(), pytest.raises(UsageError, match=r"torch\.cuda\.FloatStorage cannot be predicted"):
        torch.cuda.FloatStorage(3)


@pytest.mark.parametrize("name", sorted(REFUSED_OF_MEMORY))
def test_what_records_is_refused(name: str) -> None:
    with gpu(), pytest.raises(UsageError, match=rf"torch\.cuda\.memory\.{name} cannot be predicted"):
        getattr(torch.cuda.memory, name, Refusal(f"torch.cuda.memory.{name}"))()


def test_every_name_of_torch_accelerator_is_answered_or_refused() -> None:
    assert set(public(torch.accelerator)) - {"deprecated", "cache"} <= {*OF_ACCELERATOR, *REFUSED_OF_ACCELERATOR}


@pytest.mark.parametrize("name", [name for name in OF_ACCELERATOR if hasattr(torch.accelerator, name)])
def test_the_accelerator_answers(name: str) -> None:
    with gpu():
        OF_ACCELERATOR[name]()


def test_a_name_that_a_library_imports_is_refused_when_it_is_called() -> None:
    with gpu():
        from torch._C import _cuda_getCurrentRawStream  # type: ignore[attr-defined]

        assert _cuda_getCurrentRawStream(0) == 0
        with pytest.raises(UsageError, match=r"torch\._C\._cuda_no_such_thing cannot be predicted"):
            torch._C._cuda_no_such_thing()  # type: ignore[attr-defined]
        with pytest.raises(AttributeError):
            torch._C._no_such_thing  # type: ignore[attr-defined]  # noqa: B018


def test_nothing_of_it_stays() -> None:
    before = {name: getattr(torch.cuda, name) for name in public(torch.cuda)}
    with gpu():
        assert torch.cuda.is_available()
    assert {name: getattr(torch.cuda, name) for name in public(torch.cuda)} == before
    assert not hasattr(torch._C, "_cuda_getDeviceCount") or torch.version.cuda
    assert inspect.getmodule(torch.Generator) is not inspect.getmodule(CudaSemantics)
    assert torch.zeros(2).device.type == "cpu"


# What it is


def test_it_is_the_gpu_that_was_asked_for() -> None:
    with gpu():
        properties = torch.cuda.get_device_properties()
        assert (properties.name, properties.multi_processor_count) == ("NVIDIA GeForce RTX 4090", 128)
        assert torch.cuda.get_device_capability() == (8, 9)
        assert torch.cuda.mem_get_info() == (RTX_4090.capacity_bytes, find_device("rtx-4090").total_bytes)
        assert torch.version.cuda
        assert torch.backends.cudnn.is_available()
        assert torch.backends.cuda.is_built()
        assert torch.get_device_module() is torch.cuda
        assert torch.accelerator.current_accelerator() == torch.device("cuda")


def test_an_older_one_has_no_bfloat16_of_its_own() -> None:
    with gpu(target_of(find_device("t4"))):
        assert not torch.cuda.is_bf16_supported(including_emulation=False)


@pytest.mark.parametrize("ask", [lambda: torch.zeros(1, device="cuda:1"), lambda: torch.cuda.set_device(1)])
def test_a_second_gpu_is_not_there(ask: Callable[[], Any]) -> None:
    with gpu(), pytest.raises(RuntimeError, match="invalid device ordinal"):
        ask()


# Where tensors are


def test_tensors_say_where_they_are() -> None:
    with gpu():
        host, device = torch.zeros(3), torch.zeros(3, device="cuda")
        assert (host.device, device.device) == (torch.device("cpu"), torch.device("cuda", 0))
        assert (host.is_cuda, device.is_cuda, host.is_cpu, device.is_cpu) == (False, True, True, False)
        assert (host.get_device(), device.get_device()) == (-1, 0)
        assert (host.type(), device.type()) == ("torch.FloatTensor", "torch.cuda.FloatTensor")
        assert (host + 1).device.type == "cpu"
        assert (device + 1).device.type == (device + host.sum()).device.type == "cuda"


def test_empty_tensors_know_their_place_too() -> None:
    with gpu():
        places = [torch.empty(0), torch.tensor([]), torch.empty(0, device="cuda"), torch.tensor([], device="cuda")]
        assert [tensor.device.type for tensor in places] == ["cpu", "cpu", "cuda", "cuda"]


@pytest.mark.parametrize(
    "move",
    [
        lambda t: t.cuda(),
        lambda t: t.cuda(0, non_blocking=True),
        lambda t: t.to("cuda"),
        lambda t: t.to(0),
        lambda t: t.to("cuda:0", torch.float32, True),
        lambda t: t.to(device=torch.device("cuda")),
        lambda t: t.to(torch.zeros(1, device="cuda")),
        lambda t: t.type(torch.cuda.FloatTensor),
        lambda t: torch.as_tensor(t, device="cuda"),
        lambda t: torch.zeros_like(t, device="cuda"),
        lambda t: t.new_zeros(1000, device="cuda"),
        lambda t: t.pin_memory().to("cuda", non_blocking=True),
    ],
)
def test_every_way_over_to_the_device(move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with gpu():
        moved = move(torch.randn(1000))
        assert moved.device == torch.device("cuda", 0)
        before = torch.cuda.memory_allocated()
        assert moved.to("cuda") is moved
        assert torch.cuda.memory_allocated() == before == 4096


@pytest.mark.parametrize("move", [lambda t: t.cpu(), lambda t: t.to("cpu"), lambda t: t.type(torch.FloatTensor)])
def test_every_way_back(move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with gpu():
        back = move(torch.randn(1000, device="cuda"))
        assert back.device == torch.device("cpu")
        assert torch.cuda.memory_allocated() == 0


def test_a_new_tensor_is_where_the_old_one_is() -> None:
    with gpu():
        assert torch.zeros(2, device="cuda").new_tensor([1.0]).is_cuda
        assert not torch.zeros(2).new_tensor([1.0]).is_cuda


def test_pinned_memory_is_the_hosts() -> None:
    with gpu():
        pinned = torch.zeros(1000, pin_memory=True)
        assert pinned.is_pinned()
        assert pinned.pin_memory() is pinned
        assert torch.cuda.memory_allocated() == 0
        with pytest.raises(RuntimeError, match="cannot pin"):
            torch.zeros(3, device="cuda").pin_memory()


def test_modules_move() -> None:
    with gpu():
        for moved in (nn.Linear(3, 3).cuda(), nn.Linear(3, 3).to(0), nn.Linear(3, 3).to("cuda", torch.bfloat16)):
            assert {p.device.type for p in moved.parameters()} == {"cuda"}
        assert moved.weight.dtype is torch.bfloat16
        assert {p.device.type for p in moved.cpu().parameters()} == {"cpu"}


def test_default_devices() -> None:
    with gpu():
        torch.set_default_device("cuda")
        assert torch.get_default_device() == torch.device("cuda", 0)
        assert torch.zeros(3).is_cuda
        assert not torch.zeros(3, device="cpu").is_cuda
        torch.set_default_device(None)
        assert torch.get_default_device() == torch.device("cpu")
        with torch.device("cuda"):
            assert nn.Linear(3, 3).weight.is_cuda
        assert not nn.Linear(3, 3).weight.is_cuda


def test_what_autograd_calls_sees_the_device_too() -> None:
    seen: list[str] = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.device.type)
            return x * 2

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            seen.append(grads[0].device.type)
            return grads[0] * 2

    with gpu():
        x = torch.randn(3, device="cuda", requires_grad=True)
        x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.device.type))
        Double.apply(x).sum().backward()
    assert seen == ["cuda", "cuda", "cuda"]


def test_saved_tensors_that_go_to_the_host_leave_the_device() -> None:
    def kept(offload: bool) -> int:
        with gpu():
            x = torch.randn(1 << 20, device="cuda", requires_grad=True)
            before = torch.cuda.memory_allocated()
            if offload:
                with torch.autograd.graph.save_on_cpu(pin_memory=True):
                    loss = (x * 2).exp().sum()
            else:
                loss = (x * 2).exp().sum()
            held = torch.cuda.memory_allocated() - before
            loss.backward()
            assert x.grad is not None
            return held

    assert kept(offload=False) == (4 << 20) + 512
    assert kept(offload=True) == 512


def test_threads_of_the_program_see_it() -> None:
    seen: list[str] = []
    with gpu():
        host = torch.randn(100_000)
        thread = threading.Thread(target=lambda: seen.append(host.to("cuda").device.type))
        thread.start()
        thread.join()
    assert seen == ["cuda"]


def test_groups_of_tensors_are_by_place() -> None:
    with gpu():
        host, device = torch.zeros(3), torch.zeros(3, device="cuda")
        grouped = torch.utils._foreach_utils._group_tensors_by_device_and_dtype([[device, host, device]], True)
        keys = {place.type: indices for (place, _), (_, indices) in grouped.items()}
    assert keys == {"cuda": [0, 2], "cpu": [1]}


# Autocast, scaler, random numbers, streams


def test_autocast_and_scaler() -> None:
    with gpu():
        model = nn.Linear(8, 8).cuda()
        optimizer = torch.optim.AdamW(model.parameters())
        scaler = torch.amp.GradScaler("cuda")
        with torch.autocast("cuda"):
            assert torch.is_autocast_enabled()
            assert torch.is_autocast_enabled("cuda")
            assert torch.get_autocast_dtype("cuda") is torch.float16
            output = model(torch.randn(2, 8, device="cuda"))
        assert output.dtype is torch.float16
        with torch.autocast("cpu"):
            assert model(torch.randn(2, 8, device="cuda")).dtype is torch.float32
        scaler.scale(output.sum()).backward()
        scaler.unscale_(optimizer)
        assert nn.utils.clip_grad_norm_(model.parameters(), 1.0).is_cuda
        scaler.step(optimizer)
        scaler.update()
        state = optimizer.state[model.weight]
        assert (state["step"].is_cuda, state["exp_avg"].is_cuda) == (False, True)
        assert not torch.is_autocast_enabled("cuda")


def test_generators_and_their_states() -> None:
    with gpu():
        generator = torch.Generator(device="cuda").manual_seed(3)
        assert (generator.device.type, generator.initial_seed()) == ("cuda", 3)
        assert torch.randn(3, device="cuda", generator=generator).is_cuda
        assert isinstance(torch.default_generator, torch.Generator)
        torch.cuda.manual_seed_all(7)
        state = torch.cuda.get_rng_state()
        assert (state.numel(), state.device.type) == (16, "cpu")
        torch.cuda.manual_seed(8)
        torch.cuda.set_rng_state(state)
        assert torch.cuda.initial_seed() == 7


def test_memory_is_taken_on_the_stream_that_work_goes_to() -> None:
    with gpu() as mode:
        one, two = torch.cuda.Stream(), torch.cuda.Stream(priority=-1)
        kept = [torch.empty(1, device="cuda")]
        with torch.cuda.stream(one):
            kept.append(torch.empty(1, device="cuda"))
            with torch.cuda.stream(two):
                kept.append(torch.empty(1, device="cuda"))
                assert torch.cuda.current_stream() == two
            assert torch.cuda.current_stream() == one
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        kept[1].record_stream(two)
        two.wait_stream(one)
        assert isinstance(one, torch.Stream)
        numbers = [entry.stream for entry in mode.log.entries(0) if isinstance(entry, Allocation)]
    assert numbers == [0, one.stream_id, two.stream_id]
    assert len(set(numbers)) == 3


def test_events_measure_the_hosts_time() -> None:
    with gpu():
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        end.record()
        end.synchronize()
        assert end.query()
        assert begin.elapsed_time(end) > 0
        with pytest.raises(ValueError, match="enable_timing"):
            torch.cuda.Event().elapsed_time(end)


# Memory


def train_a_little(mode: FakeOperators) -> tuple[dict[str, int], Trace]:
    """Train, ask, and return the answers with the trace up to there."""
    model = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(3):
        optimizer.zero_grad()
        model(torch.randn(256 * (step + 1), 512, device="cuda")).square().mean().backward()
        optimizer.step()
        if step == 1:
            torch.cuda.empty_cache()
    answers = {
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "peak allocated": torch.cuda.max_memory_allocated(),
        "peak reserved": torch.cuda.max_memory_reserved(),
    }
    return answers, build_trace(mode.log.entries(0))


@pytest.mark.parametrize("conf", ["", "expandable_segments:True", "max_split_size_mb:32"])
def test_memory_is_what_a_replay_afterwards_finds(conf: str) -> None:
    from memprof.allocator.settings import parse_alloc_conf

    target = target_of(find_device("rtx-4090"), parse_alloc_conf(conf))
    with gpu(target) as mode:
        answers, trace = train_a_little(mode)
    allocator = CachingAllocator(target.capacity_bytes, target.allocator)
    replayed = replay_blocks(trace, allocator)
    assert answers["reserved"] == allocator.reserved_bytes
    assert answers["peak reserved"] == allocator.peak_reserved_bytes == max(replayed.reserved.values())
    assert answers["peak allocated"] == allocator.peak_allocated_bytes
    assert answers["allocated"] == allocator.allocated_bytes


def test_an_emptied_cache_is_in_the_trace() -> None:
    def reserved(empty: bool) -> tuple[int, int]:
        with gpu() as mode:
            large = torch.empty(100 << 20, device="cuda", dtype=torch.uint8)
            del large
            if empty:
                torch.cuda.empty_cache()
            small = torch.empty(40 << 20, device="cuda", dtype=torch.uint8)
            answer = torch.cuda.memory_reserved()
            trace = build_trace(mode.log.entries(0))
            del small
        return answer, replay_blocks(trace, CachingAllocator()).reserved_levels[-1]

    assert reserved(empty=False) == (100 << 20, 100 << 20)
    assert reserved(empty=True) == (40 << 20, 40 << 20)


def test_cleared_workspaces_are_given_back_and_taken_anew() -> None:
    with gpu() as mode:
        model, x = nn.Linear(64, 64, bias=False).cuda(), torch.randn(8, 64, device="cuda")
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            model(x)
            assert torch.cuda.memory_allocated() - before == RTX_4090.cublas_workspace_bytes
            torch._C._cuda_clearCublasWorkspaces()  # type: ignore[attr-defined]
            assert torch.cuda.memory_allocated() == before
            model(x)
        assert torch.cuda.memory_allocated() - before == RTX_4090.cublas_workspace_bytes
        assert replay_blocks(build_trace(mode.log.entries(0)), CachingAllocator()).failure is None


def test_statistics_add_up() -> None:
    with gpu() as mode:
        train_a_little(mode)
        stats = torch.cuda.memory_stats()
        for name in ("allocated_bytes", "reserved_bytes", "active_bytes", "segment", "allocation", "requested_bytes"):
            for kind in ("current", "allocated", "freed"):
                parts = stats[f"{name}.small_pool.{kind}"] + stats[f"{name}.large_pool.{kind}"]
                assert stats[f"{name}.all.{kind}"] == parts
            assert stats[f"{name}.all.current"] == stats[f"{name}.all.allocated"] - stats[f"{name}.all.freed"]
        assert stats["segment.all.allocated"] == stats["num_device_alloc"]
        assert stats["segment.all.freed"] == stats["num_device_free"] > 0
        free = stats["reserved_bytes.all.current"] - stats["active_bytes.all.current"]
        assert 0 < stats["inactive_split_bytes.all.current"] <= free
        torch.cuda.reset_peak_memory_stats()
        assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()
        assert "CUDA memory summary" in torch.cuda.memory_summary()


def test_memory_that_does_not_fit_is_pytorchs_error() -> None:
    with gpu() as mode:
        kept = [torch.empty(GIB, dtype=torch.uint8, device="cuda") for _ in range(20)]
        cached = torch.empty(GIB, dtype=torch.uint8, device="cuda")
        del cached
        with pytest.raises(torch.OutOfMemoryError) as error:
            torch.empty(5 * GIB, dtype=torch.uint8, device="cuda")
        free, total = torch.cuda.mem_get_info()
        stats = torch.cuda.memory_stats()
        assert (stats["num_ooms"], stats["num_alloc_retries"]) == (1, 1)
        assert torch.cuda.memory_reserved() == 20 * GIB  # what was cached has gone back
        kept.append(torch.empty(GIB, dtype=torch.uint8, device="cuda"))
        trace = build_trace(mode.log.entries(0))
    text = str(error.value)
    assert text.startswith(
        "CUDA out of memory. Tried to allocate 5.00 GiB. GPU 0 has a total capacity of 23.52 GiB of "
    )
    assert f"which {free / GIB:.2f} GiB is free. Including non-PyTorch memory, this process has " in text
    assert f"{(total - free) / GIB:.2f} GiB memory in use. Of the allocated memory 20.00 GiB is allocated" in text
    assert "0 bytes is reserved by PyTorch but unallocated." in text
    replayed = replay_blocks(trace, CachingAllocator(RTX_4090.capacity_bytes))
    assert replayed.failure is None  # the failed request has left nothing but an emptied cache
    assert replayed.reserved_levels[-1] == 21 * GIB


def test_a_small_request_fails_by_its_segment() -> None:
    with gpu():
        free, _ = torch.cuda.mem_get_info()
        kept = torch.empty(free - (10 << 20), dtype=torch.uint8, device="cuda")
        with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 20\.00 MiB\."):
            torch.empty(5 << 20, dtype=torch.uint8, device="cuda")
        del kept


def test_within_a_comparison_memory_has_no_end() -> None:
    with gpu(limited=False):
        kept = torch.empty(100 * GIB, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_allocated() == 100 * GIB
        assert torch.cuda.mem_get_info()[0] == 0
        del kept


def test_accelerate_halves_the_batch() -> None:
    memory_utils = pytest.importorskip("accelerate.utils.memory")
    tried: list[int] = []
    with gpu():

        @memory_utils.find_executable_batch_size(starting_batch_size=64)  # type: ignore[untyped-decorator]
        def train(batch_size: int) -> int:
            tried.append(batch_size)
            model = nn.Linear(1024, 1024).cuda()
            for _ in range(2):
                model(torch.randn(batch_size * 64 * 1024, 1024, device="cuda")).sum().backward()
            return batch_size

        found = train()
        gc.collect()
    assert tried == sorted(tried, reverse=True)
    assert 1 < found < 64


# In a comparison


BRANCH = """
import torch
from torch import nn
from memprof import Workload

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(64, 64)

    def forward(self, x):
        y = self.f(x)
        if {condition}:
            y = y + torch.zeros(16 << 20, device=x.device).sum()
        return y

def make():
    return Workload(model=Model, batch=lambda b: torch.randn(b, 64), loss=lambda m, b: m(b).square().mean())
"""


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        ("x.is_cuda", True),
        ("x.device.type == 'cuda'", True),
        ("torch.cuda.is_available()", True),
        ("torch.accelerator.is_available()", True),
        ("torch.get_device_module().__name__ == 'torch.cuda'", True),
        ("str(self.f.weight.device) == 'cuda:0'", True),
        ("x.is_cpu", False),
    ],
)
def test_a_model_that_asks_gets_the_simulated_answer(condition: str, taken: bool, tmp_path: Any) -> None:
    file = tmp_path / "branch.py"
    file.write_text(BRANCH.format(condition=condition))
    workload = WorkloadSpec(model=f"{file}:make")
    run = predict_runs(workload, [parse_optimizer("sgd")], Recipe(), 8, RTX_4090)[0]
    assert run.peak is not None
    assert (run.peak.tensor_bytes > 64 << 20) is taken


FLEX = """
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from memprof import Workload

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(64, 192)

    def forward(self, x):
        q, k, v = self.q(x).view(len(x), 128, 3, 4, 16).permute(2, 0, 3, 1, 4)
        return flex_attention(q, k, v)

def make():
    return Workload(model=Model, batch=lambda b: torch.randn(b, 128, 64), loss=lambda m, b: m(b).square().mean())
"""


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_keeps_its_scores_in_the_backward_pass(tmp_path: Any) -> None:
    file = tmp_path / "flex.py"
    file.write_text(FLEX)
    run = predict_runs(WorkloadSpec(model=f"{file}:make"), [parse_optimizer("sgd")], Recipe(), 8, RTX_4090)[0]
    assert run.peak is not None
    assert run.peak.phase == "backward"
    scores = 8 * 4 * 128 * 128 * 4
    assert 4 * scores < run.peak.tensor_bytes < 12 * scores
