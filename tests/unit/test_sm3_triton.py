"""The Triton kernel against the contract of `test_sm3_kernels.py`: interpreted on the CPU, compiled on a GPU.

The interpreter shows that indices, masks and maxima are right; compiling for a GPU shows that it compiles and how it
rounds. Neither shows that the compiled code runs, nor how fast.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from sm3 import SM3
from sm3.kernels import compiler, inner

pytest.importorskip("triton")
SHAPES = [(), (5,), (2500,), (5, 7), (40, 600), (600, 40), (17, 257), (3, 4, 5), (8, 4, 3, 3)]
OPTIONS = [
    {},
    {"variant": "I"},
    {"momentum": 0.9},
    {"momentum": 0.9, "momentum_dtype": "bfloat16"},
    {"beta": 0.9, "variant": "I"},
    {"beta": 0.9, "momentum": 0.5, "weight_decay": 0.1, "maximize": True},
    {"lr": torch.tensor(0.25), "weight_decay": 0.5},
]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
on_gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the first test starts")


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_interpreted_contract_holds() -> None:
    """The interpreter must be on before Triton is imported, hence a process of its own for the tests below."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout


if INTERPRETED:  # let the CPU's kernels round a sum of squares as on a GPU
    inner.rounding = lambda: "unknown"


def run(kernel: str, shape, dtype=torch.float32, device="cpu", steps=3, **options):
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype))
    if isinstance(options.get("lr"), torch.Tensor):
        options["lr"] = options["lr"].to(device)
    optimizer = SM3([param], **{"lr": 0.25, "kernel": kernel, **options})
    for _ in range(steps):
        grad = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.7)
        param.grad = grad.to(device, dtype)
        optimizer.step()
    return param.detach().cpu(), {k: v.cpu() for k, v in optimizer.state[param].items()}, optimizer.kernel


def assert_same(found, expected) -> None:
    """Accumulators bit for bit; low-precision values may round down where the interpreter truncates."""
    assert found[2] == "triton"
    coarse = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
    unit = max(coarse.get(value.dtype, 2**-23) for value in [found[0], *found[1].values()])
    torch.testing.assert_close(found[0], expected[0], rtol=4 * unit, atol=12 * unit)
    for key, value in expected[1].items():
        if key.startswith("accumulator"):
            assert torch.equal(found[1][key], value), key
        else:
            torch.testing.assert_close(found[1][key], value, rtol=4 * unit, atol=4 * unit)


@interpreted
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted_equals_chunked(shape, options) -> None:
    assert_same(run("triton", shape, **options), run("chunked", shape, **options))


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(40, 300), (33,)], ids=str)
def test_low_precision_parameters(shape, dtype) -> None:
    assert_same(run("triton", shape, dtype), run("chunked", shape, dtype))


@interpreted
@pytest.mark.skipif(compiler.library() is None, reason="no C++ compiler with OpenMP here")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted_equals_the_compiled_cpu_kernel_bit_for_bit(shape) -> None:
    options = {"momentum": 0.9, "weight_decay": 0.1}
    found, expected = run("triton", shape, **options), run("native", shape, **options)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][key], value) for key, value in expected[1].items())


@interpreted
@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
def test_a_nan_spreads_as_in_the_chunked_kernel(shape) -> None:
    results = []
    for kernel in ("triton", "chunked"):
        param = nn.Parameter(torch.ones(shape))
        optimizer = SM3([param], kernel=kernel)
        for step in range(3):
            param.grad = torch.ones(shape)
            param.grad[3, 2] = torch.nan if step == 0 else 1.0
            optimizer.step()
        results.append([param.detach(), *optimizer.state[param].values()])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found.isnan(), expected.isnan())


@interpreted
def test_auto_does_not_interpret_on_the_cpu() -> None:
    assert "triton" not in run("auto", (5, 7))[2]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_without_the_interpreter_a_cpu_tensor_is_refused() -> None:
    with pytest.raises(RuntimeError, match="kernel='auto'"):
        run("triton", (5, 7))


@on_gpu
@needs_gpu
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 1000), (1000, 4096)], ids=str)
def test_compiled_equals_chunked(shape, options) -> None:
    assert_same(run("triton", shape, device="cuda", **options), run("chunked", shape, device="cuda", **options))


@on_gpu
@needs_gpu
def test_a_captured_step_follows_a_learning_rate_in_a_tensor() -> None:
    params = [nn.Parameter(torch.ones(64, 32, device="cuda")) for _ in range(2)]
    rates = [torch.tensor(0.5, device="cuda") for _ in params]
    eager, captured = (SM3([p], lr=lr, momentum=0.9) for p, lr in zip(params, rates, strict=True))
    for param, optimizer in zip(params, (eager, captured), strict=True):
        param.grad = torch.full_like(param, 0.5)
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for lr in (0.5, 0.25):
        for rate in rates:
            rate.fill_(lr)
        eager.step()
        graph.replay()
    assert torch.equal(*params)


TYPES = {"rows": "i32", "cols": "i32", "numel": "i32", "maxima": "*i32"}
POINTERS = ("param", "grad", "average", "row", "column", "lr_tensor", "accumulator")


def ptx_of(kernel, **constants) -> str:
    """Compile a kernel for an H100 or H200, which needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = [param.name for param in kernel.params]
    types = {**dict.fromkeys(names, "fp32"), **dict.fromkeys(POINTERS, "*fp32"), **TYPES}
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    options = {"enable_fp_fusion": False}
    return str(compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_matrix_kernel_compiles_for_a_gpu_without_contraction(mode, by_rows) -> None:
    from sm3.kernels import triton_cuda

    flags = {"averages": mode == 0, "decays": True, "lr_in_tensor": by_rows}
    ptx = ptx_of(triton_cuda._matrix_kernel, mode=mode, by_rows=by_rows, height=16, width=256, **flags)
    assert "fma.rn.f32" not in ptx
    assert ("sqrt.rn.f32" in ptx) == (mode != 1)
    assert ("max.s32" in ptx) == (mode != 2)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
def test_the_vector_kernel_compiles_for_a_gpu_without_contraction() -> None:
    from sm3.kernels import triton_cuda

    flags = {"averages": True, "decays": True, "lr_in_tensor": True}
    ptx = ptx_of(triton_cuda._vector_kernel, block=1024, **flags)
    assert "fma.rn.f32" not in ptx
    assert "sqrt.rn.f32" in ptx
