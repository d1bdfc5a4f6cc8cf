"""What CUDA does differently: which attention kernel, what is saved, what is float32, what is on the host."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from memprof.devices.target import Target, parse_torch_version
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.cuda.attention import choose_attention
from memprof.prediction.cuda.semantics import CudaSemantics
from memprof.prediction.fake.dispatch import FakeOperators
from memprof.prediction.fake.event_log import EventLog
from memprof.prediction.fake.training import FakeRun, fake_runs
from memprof.prediction.fake.value_reads import Reads
from memprof.trace.attribution import build_trace
from memprof.trace.events import OperatorBegin, PhaseMark
from tests.small_workloads import SMALL

HERE = parse_torch_version(torch.__version__)
AMPERE = Target(name="a100", kind="cuda", capability=(8, 0), torch_version=min(HERE, (2, 13)))
ADA = replace(AMPERE, capability=(8, 9))
HOPPER = replace(AMPERE, capability=(9, 0), torch_version=(2, 13))
TURING = replace(AMPERE, capability=(7, 5))
BLACKWELL_CONSUMER = replace(AMPERE, capability=(12, 0), torch_version=(2, 13))


@contextmanager
def cuda(target: Target = AMPERE, default: str | None = "cuda"):
    semantics = CudaSemantics(target)
    mode = FakeOperators(EventLog(), Reads(), semantics)
    with semantics.applied(mode), mode, torch.device(default) if default else nullcontext():
        mode.phase = "forward"
        yield mode


def operators(mode: FakeOperators) -> list[str]:
    return [entry.operator for entry in mode.log.entries(0) if isinstance(entry, OperatorBegin)]


def qkv(dtype: torch.dtype, width: int = 64, length: int = 128, heads: int = 4, key_heads: int = 4) -> list[Tensor]:
    shapes = [(2, heads, length, width), (2, key_heads, length, width), (2, key_heads, length, width)]
    return [torch.empty(shape, dtype=dtype, device="meta", requires_grad=True) for shape in shapes]


HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("target", "tensors", "mask", "dropout", "causal", "backend"),
    [
        (AMPERE, qkv(BF16), False, 0.0, True, "flash"),
        (AMPERE, qkv(BF16), False, 0.1, True, "flash"),
        (AMPERE, qkv(FP32), False, 0.1, True, "efficient"),
        (AMPERE, qkv(BF16), True, 0.0, False, "efficient"),
        (AMPERE, qkv(FP32, width=66), False, 0.0, False, "math"),  # rows of 264 bytes
        (AMPERE, qkv(BF16, width=66), False, 0.0, False, "flash"),  # is padded to 72
        (AMPERE, qkv(BF16, width=320), False, 0.0, False, "efficient"),
        (AMPERE, qkv(torch.float64), False, 0.0, False, "math"),
        (AMPERE, qkv(BF16, heads=8, key_heads=2), False, 0.0, True, "flash"),
        (AMPERE, qkv(FP32, heads=8, key_heads=2), False, 0.0, True, "math"),
        (replace(AMPERE, torch_version=(2, 14)), qkv(FP32, heads=8, key_heads=2), False, 0.0, True, "efficient"),
        (TURING, qkv(HALF), False, 0.0, True, "efficient"),
        (TURING, qkv(BF16), False, 0.0, True, "math"),
        (TURING, qkv(FP32, width=66), False, 0.0, True, "efficient"),
        (ADA, qkv(BF16, width=208), False, 0.0, False, "efficient"),
        (ADA, qkv(BF16, width=256), False, 0.0, False, "flash"),
        (ADA, qkv(BF16, width=256), False, 0.1, False, "efficient"),
        (BLACKWELL_CONSUMER, qkv(BF16, width=208), False, 0.0, False, "efficient"),
        (HOPPER, qkv(BF16), False, 0.0, True, "cudnn"),
        (HOPPER, qkv(BF16, width=256), True, 0.0, True, "cudnn"),
        (HOPPER, qkv(FP32), False, 0.0, True, "efficient"),
        (replace(HOPPER, torch_version=(2, 8)), qkv(BF16), False, 0.0, True, "flash"),
    ],
)
def test_the_attention_kernel(
    target: Target, tensors: list[Tensor], mask: bool, dropout: float, causal: bool, backend: str
) -> None:
    query, key, value = tensors
    bias = torch.empty(128, 128, dtype=torch.bool, device="meta") if mask else None
    grouped = query.shape[1] != key.shape[1]
    assert choose_attention(target, query, key, value, bias, dropout, causal, grouped) == backend


def test_cudnn_attention_can_be_put_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    assert choose_attention(HOPPER, *qkv(BF16), None, 0.0, True) == "flash"


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_attention_saves_its_output_and_one_number_per_row(dtype: torch.dtype) -> None:
    with cuda() as mode:
        query, key, value = (torch.empty(2, 4, 96, 64, dtype=dtype, requires_grad=True) for _ in range(3))
        before = mode.log.live_bytes
        output = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=0.1, is_causal=True)
        rows = 2 * 4 * 96 * 4
        state = 0 if dtype is FP32 else 16 + 8  # flash keeps seed and offset on the device
        assert mode.log.live_bytes - before == output.numel() * output.element_size() + rows + state
        output.sum().backward()
        kind = "efficient" if dtype is FP32 else "flash"
        assert f"aten::_scaled_dot_product_{kind}_attention_backward" in operators(mode)
        assert query.grad.shape == query.shape


def test_attention_in_float32_rounds_its_rows_to_32() -> None:
    with cuda() as mode:
        query, key, value = (torch.empty(1, 1, 33, 64, requires_grad=True) for _ in range(3))
        before = mode.log.live_bytes
        output = nn.functional.scaled_dot_product_attention(query, key, value)
        assert mode.log.live_bytes - before == output.numel() * 4 + 64 * 4


def test_dropout_keeps_one_byte_per_entry() -> None:
    with cuda() as mode:
        x = torch.empty(1000, requires_grad=True)
        before = mode.log.live_bytes
        y = nn.functional.dropout(x, 0.1)
        assert mode.log.live_bytes - before == 4000 + 1000
        assert nn.functional.dropout(x, 0.0) is not None
        assert nn.functional.dropout(x, 0.1, training=False).data_ptr() == x.data_ptr()
        y.sum().backward()
        assert "aten::native_dropout_backward" in operators(mode)


def test_batch_norm_goes_through_cudnn_where_it_takes_the_input() -> None:
    with cuda() as mode:
        layer = nn.BatchNorm2d(8)
        layer(torch.empty(4, 8, 5, 5)).sum().backward()
        assert {"aten::cudnn_batch_norm", "aten::cudnn_batch_norm_backward"} <= set(operators(mode))
        layer(torch.empty(4, 8, 5, 5, dtype=torch.bfloat16)).sum().backward()
        assert {"aten::native_batch_norm", "aten::native_batch_norm_backward"} <= set(operators(mode))


@pytest.mark.skipif(HERE < (2, 9), reason="the kernel is not there before 2.9")
def test_rms_norm_is_one_kernel_since_2_9() -> None:
    def kept(target: Target) -> int:
        with cuda(target) as mode:
            x, weight = torch.empty(16, 64, requires_grad=True), torch.empty(64, requires_grad=True)
            before = mode.log.live_bytes
            y = nn.functional.rms_norm(x, (64,), weight, 1e-5)
            taken = mode.log.live_bytes - before
            y.sum().backward()
            assert x.grad.shape == x.shape
            return taken

    assert kept(AMPERE) == 16 * 64 * 4 + 16 * 4
    assert kept(replace(AMPERE, torch_version=(2, 8))) > 2 * 16 * 64 * 4


AUTOCAST = {
    "layer_norm": lambda x: nn.functional.layer_norm(x, (8,)),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "exp": lambda x: x.exp(),
    "pow": lambda x: x**2,
    "sum": lambda x: x.sum(),
    "sum_dim": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(),
    "gelu": nn.functional.gelu,
    "cross_entropy": lambda x: nn.functional.cross_entropy(x, torch.zeros(8, dtype=torch.int64)),
    "matmul": lambda x: x @ x,
    "linear": lambda x: nn.functional.linear(x.float(), torch.empty(4, 8)),
    "rms_norm": lambda x: nn.functional.rms_norm(x, (8,)),
    "add": lambda x: x + x.float(),
    "mse": lambda x: nn.functional.mse_loss(x, x),
    "group_norm": lambda x: nn.functional.group_norm(x.view(2, 4, 8), 2),
    "cumsum": lambda x: x.cumsum(0),
}
IN_FLOAT32 = {
    *("layer_norm", "softmax", "log_softmax", "exp", "pow", "sum", "sum_dim", "cross_entropy", "rms_norm", "add"),
    *("mse", "group_norm", "cumsum"),
}


@pytest.mark.parametrize("dtype", [BF16, HALF])
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_follows_the_lists_of_cuda(name: str, dtype: torch.dtype) -> None:
    with cuda(), torch.autocast("cuda", dtype):
        x = torch.empty(8, 8, dtype=dtype)
        assert AUTOCAST[name](x).dtype is (FP32 if name in IN_FLOAT32 else dtype)


def test_softmax_of_float16_casts_within_the_kernel() -> None:
    with cuda() as mode, torch.autocast("cuda", HALF):
        x = torch.empty(100, 100, dtype=HALF)
        mode.log.peak_bytes = before = mode.log.live_bytes
        y = x.log_softmax(-1)
        assert y.dtype is FP32
        assert mode.log.peak_bytes - before == 40000


def test_weights_are_cast_once_and_kept_until_autocast_ends() -> None:
    with cuda() as mode:
        weight, x = torch.empty(512, 512, requires_grad=True), torch.empty(1, 512)
        before = mode.log.live_bytes
        with torch.autocast("cuda", BF16), torch.no_grad():
            for _ in range(3):
                torch.mm(x, weight)
        with torch.autocast("cuda", BF16):
            for _ in range(3):
                torch.mm(x, weight)
            assert mode.log.live_bytes - before - cublas(mode) >= 512 * 512 * 2
        assert operators(mode).count("aten::_to_copy") <= 6 + 2 * 3
        assert mode.log.live_bytes - before - cublas(mode) == 0


def cublas(mode: FakeOperators) -> int:
    return 8519680 if "aten::mm" in operators(mode) else 0


def test_cuda_is_where_the_tensors_are() -> None:
    with cuda() as mode:
        x = torch.empty(1000, 1000, device="cuda")
        assert x.cuda().data_ptr() == x.to("cuda").data_ptr() == x.to(torch.device("cuda:0")).data_ptr() == x.data_ptr()
        assert mode.log.live_bytes == 4_000_000
        assert torch.zeros(3, device="cuda").tolist() == [0, 0, 0]
        assert x.to(device="cuda", dtype=BF16).dtype is BF16
        assert nn.Linear(3, 3, device="cuda").to("cuda").cuda().weight.shape == (3, 3)
        assert x.is_cuda
        assert x.get_device() == 0


MADE_ON_HOST = {
    "zeros": lambda: torch.zeros(1000, 1000),
    "computed": lambda: torch.ones(1000, 1000).tril() * 2,
    "tensor": lambda: torch.tensor([0.0] * 1000, device="cpu"),
    "given back": lambda: torch.empty(1000, 1000, device="cuda").cpu(),
    "index device": lambda: torch.empty(3, 3, device=0).cpu(),
}


@pytest.mark.parametrize("name", MADE_ON_HOST)
def test_what_is_made_without_a_device_is_on_the_host(name: str) -> None:
    with cuda(default=None) as mode:
        x = MADE_ON_HOST[name]()
        assert mode.log.live_bytes == 0
        assert not x.is_cuda
        assert x.get_device() == -1
        device = torch.empty(1, device="cuda")
        for moved in (x.cuda, lambda: x.to("cuda"), lambda: x.to(device.device), lambda: x.to(device), lambda: x.to(0)):
            there = moved()
            assert there.is_cuda
            assert mode.log.live_bytes == x.numel() * 4 + 4
            del there
        assert x.to("cuda", BF16).dtype is x.to(dtype=BF16, device="cuda").dtype is BF16
        assert not x.to(BF16).is_cuda


def test_a_module_made_on_the_host_is_moved() -> None:
    with cuda(default=None) as mode:
        module = nn.Linear(100, 100)
        assert mode.log.live_bytes == 0
        assert module.cuda().weight.is_cuda
        assert mode.log.live_bytes == 100 * 100 * 4 + 400


def test_autocast_of_cuda_is_that_of_the_fake_tensors() -> None:
    with cuda():
        x = torch.empty(8, 8, device="cuda")
        with torch.autocast("cuda"):
            assert torch.is_autocast_enabled("cuda")
            assert torch.is_autocast_enabled()
            assert (x @ x).dtype is torch.get_autocast_dtype("cuda") is HALF
            with torch.autocast("cuda", enabled=False):
                assert (x @ x).dtype is FP32
        with torch.autocast("cuda", BF16):
            assert (x @ x).softmax(-1).dtype is FP32
        assert (x @ x).dtype is FP32


def test_code_that_the_backward_pass_runs_finds_cuda_too() -> None:
    """A hook, and a forward that is run again: PyTorch turns a mode off in the calls that the mode takes."""
    with cuda(default=None):
        found: list[bool] = []

        def block(x: Tensor) -> Tensor:
            found.append((torch.zeros(3, device="cuda").is_cuda, torch.zeros(3).is_cuda) == (True, False))
            return x.exp()

        x = torch.empty(3, device="cuda", requires_grad=True)
        x.register_post_accumulate_grad_hook(lambda leaf: found.append(leaf.is_cuda and not torch.ones(1).is_cuda))
        assert torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False).sum().backward() is None
        assert found == [True, True, True]


def test_a_gradient_can_be_given_to_the_backward_pass() -> None:
    with cuda():
        x, w = (torch.empty(4, requires_grad=True) for _ in range(2))
        y = x * w
        y.backward(torch.ones(4), retain_graph=True, inputs=[x])
        assert x.grad is not None
        assert w.grad is None
        y.backward(gradient=torch.ones(4))
        assert w.grad is not None


def test_a_fake_tensor_can_be_printed() -> None:
    with cuda():
        assert str(torch.empty(30, 30, device="cuda")) == "tensor(..., size=(30, 30), dtype=torch.float32)"
        assert repr(torch.tensor([1, 2], device="cpu")) == "tensor([1, 2])"


def test_everything_is_taken_back_afterwards() -> None:
    x = torch.ones(8, requires_grad=True)
    with cuda():
        pass
    assert "Native" not in str(nn.functional.dropout(x, 0.5).grad_fn)
    with torch.autocast("cpu", BF16):
        assert x.bfloat16().softmax(-1).dtype is BF16


def train(optimizer: str, recipe: Recipe | None = None, target: Target = AMPERE, workload: str = "gpt2") -> FakeRun:
    spec = WorkloadSpec(model=workload, knobs=SMALL[workload])
    (run,) = fake_runs(spec, [parse_optimizer(optimizer)], recipe or Recipe(), 2, CudaSemantics(target))
    assert run.failure is None, run.failure
    return run


@pytest.mark.parametrize(
    ("optimizer", "implementation"),
    [
        ("adam", "foreach"),
        ("adam,foreach=false", "for-loop"),
        ("adam,fused=true", "fused"),
        ("sgd", "foreach"),
        ("adafactor", "for-loop"),
        ("sm3", "triton"),
        ("sm3,kernel='chunked'", "chunked"),
    ],
)
def test_the_implementation_that_cuda_takes(optimizer: str, implementation: str) -> None:
    assert train(optimizer).implementation == implementation


def test_step_counters_of_adam_are_on_the_host() -> None:
    run = train("adam")
    trace = build_trace(run.entries)
    kept = Counter(block.size for block in trace.blocks if block.category == "optimizer_state")
    assert 4 not in kept
    assert sum(size * n for size, n in kept.items()) == 2 * run.parameters.bytes


def test_foreach_takes_a_copy_of_the_parameters() -> None:
    def temporaries(optimizer: str) -> int:
        trace = build_trace(train(optimizer).entries)
        spans = [span for span in trace.spans if span.step == 2 and span.phase == "optimizer"]
        level = top = 0
        following = next(span.start for span in trace.spans if span.start > spans[0].start)
        for event in trace.events[spans[0].start : following]:
            level += event.size
            top = max(top, level)
        return top

    parameters = train("adam").parameters.bytes
    assert temporaries("adam") >= parameters
    assert temporaries("adam,foreach=false") < parameters


def test_batches_are_made_on_the_host_and_copied() -> None:
    trace = build_trace(train("sgd").entries)
    batch = [block for block in trace.blocks if block.phase == "batch"]
    assert {block.operator for block in batch} == {"aten::_to_copy"}
    assert {block.size for block in batch} == {2 * 32 * 8}
    assert len(batch) == 2 * 2


def test_the_model_is_moved_tensor_by_tensor() -> None:
    run = train("sgd")
    trace = build_trace(run.entries)
    end = trace.spans[1].start
    moved = [trace.blocks[event.block] for event in trace.events[:end] if event.size > 0]
    parameters = [block for block in moved if block.category == "parameters"]
    assert sum(block.size for block in parameters) == run.parameters.bytes
    assert {block.operator for block in parameters} == {"aten::_to_copy"}


@pytest.mark.parametrize(
    ("target", "copies", "size"),
    [(AMPERE, 2, 8519680), (HOPPER, 2, 32 << 20), (replace(HOPPER, torch_version=(2, 15)), 0, 0)],
)
def test_cublas_keeps_a_workspace_for_each_thread_up_to_2_14(target: Target, copies: int, size: int) -> None:
    trace = build_trace(train("sgd", target=target).entries)
    workspaces = [block for block in trace.blocks if block.category == "workspace"]
    assert [block.size for block in workspaces] == [size] * copies
    if copies == 0:
        assert 32 << 20 in {block.size for block in trace.blocks if block.category == "temporaries"}


def test_cublas_workspace_config_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8:4096:2")
    trace = build_trace(train("sgd").entries)
    assert {b.size for b in trace.blocks if b.category == "workspace"} == {(16 * 8 + 4096 * 2) << 10}


def test_flash_attention_backward_takes_a_float32_gradient_of_the_query() -> None:
    trace = build_trace(train("sgd", Recipe(precision="bf16")).entries)
    name = "aten::_scaled_dot_product_flash_attention_backward"
    scratch = {block.size for block in trace.blocks if block.operator == name and not block.tensor}
    assert scratch == {2 * 4 * 128 * 4, 2 * 4 * 128 * 32 * 4}  # 32 rows become 128, 16 columns 32


@pytest.mark.parametrize("workload", SMALL)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp-bf16", "amp-fp16"])
def test_every_workload_in_every_precision(workload: str, precision: str) -> None:
    run = train("adam", Recipe(precision=precision), workload=workload)  # type: ignore[arg-type]
    assert [mark.phase for mark in run.entries if isinstance(mark, PhaseMark)][-1] == "zero_grad"
    assert run.state.bytes >= 2 * run.parameters.bytes


def test_parse_torch_version() -> None:
    assert parse_torch_version("2.13.0+cpu") == (2, 13)
    with pytest.raises(ValueError, match="not a PyTorch version"):
        parse_torch_version("nightly")
