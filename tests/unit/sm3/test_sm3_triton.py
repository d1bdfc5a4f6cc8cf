"""The Triton kernel against the contract of `test_sm3_kernels.py`: interpreted on the CPU, compiled on a GPU.

The interpreter shows that indices, masks and maxima are right; compiling for a GPU shows that it compiles and how it
rounds. Neither shows that the compiled code runs, nor how fast.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sm3 import SM3
from sm3.kernels import compiler, inner
from sm3.kernels import launch_grid as grid
from tests import children

triton = pytest.importorskip("triton")
SHAPES = [(), (5,), (2500,), (5, 7), (40, 300), (300, 40), (17, 257), (3, 4, 5), (8, 4, 3, 3)]
OPTIONS = [
    {},
    {"variant": "I"},
    {"momentum": 0.9},
    {"momentum": 0.9, "momentum_dtype": "bfloat16"},
    {"beta": 0.9, "variant": "I"},
    {"beta": 0.9, "momentum": 0.5, "weight_decay": 0.1, "maximize": True},
    {"lr": torch.tensor(0.25), "weight_decay": 0.5},
]
on_gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
compiles = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")

# Interpreting costs per tile, however small: these shapes have one, several along each side, and some that are cut.
SMALL_WIDTH = 32
SMALL_SHAPES = [(), (5,), (1030,), (5, 7), (7, 5), (18, 35), (35, 33), (3, 4, 5), (8, 4, 3, 3)]


def _interpreted(check: Callable[..., None], width: int, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Run a check as on a GPU: Triton's tiles of that width, and a sum of squares rounded as there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inner, "rounding", lambda: "unknown")
        patch.setattr(grid, "WIDTH", width)
        check(*arguments, **options)


@pytest.fixture(scope="module")
def interpret() -> Iterator[Callable[..., None]]:
    """Calls a check where Triton interprets: in one other process, as that is decided when Triton is imported."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, get_context("spawn")) as interpreter:
        patch.setenv("TRITON_INTERPRET", "1")
        interpreter.submit(torch.set_num_threads, 1).result()  # starts the process, with that environment

        def call(check: Callable[..., None], *arguments: Any, width: int = SMALL_WIDTH, **options: Any) -> None:
            interpreter.submit(_interpreted, check, width, arguments, options).result()

        patch.delenv("TRITON_INTERPRET")
        yield call


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


def equals(kernel: str, shape, dtype=torch.float32, **options) -> None:
    assert_same(run("triton", shape, dtype, **options), run(kernel, shape, dtype, **options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
def test_interpreted_equals_chunked(interpret, shape, options) -> None:
    interpret(equals, "chunked", shape, **options)


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("shape", [(17, 257), (130, 129)], ids=str)
def test_interpreted_tiles_of_full_width_equal_chunked(interpret, shape, variant) -> None:
    interpret(equals, "chunked", shape, width=grid.WIDTH, steps=2, momentum=0.9, weight_decay=0.1, variant=variant)


def sharing_changes_nothing(shape, variant: str) -> None:
    param, state, _ = run("triton", shape, steps=2, momentum=0.9, variant=variant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "PROGRAMS", 1)
        same, kept, _ = run("triton", shape, steps=2, momentum=0.9, variant=variant)
    assert torch.equal(param, same)
    assert all(torch.equal(state[key], kept[key]) for key in state)


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("shape", [(20, 70), (70, 40)], ids=str)
def test_how_many_programs_share_a_walk_changes_no_bit(interpret, shape, variant) -> None:
    interpret(sharing_changes_nothing, shape, variant)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(18, 35), (33,)], ids=str)
def test_low_precision_parameters(interpret, shape, dtype) -> None:
    interpret(equals, "chunked", shape, dtype)


def equals_native_bit_for_bit(shape) -> None:
    options = {"momentum": 0.9, "weight_decay": 0.1}
    found, expected = run("triton", shape, **options), run("native", shape, **options)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][key], value) for key, value in expected[1].items())


@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
def test_interpreted_equals_the_compiled_cpu_kernel_bit_for_bit(interpret, shape) -> None:
    if compiler.library() is None:
        pytest.skip("no C++ compiler with OpenMP here")
    interpret(equals_native_bit_for_bit, shape)


def a_nan_spreads_alike(shape) -> None:
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


@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
def test_a_nan_spreads_as_in_the_chunked_kernel(interpret, shape) -> None:
    interpret(a_nan_spreads_alike, shape)


def auto_takes_another() -> None:
    assert "triton" not in run("auto", (5, 7))[2]


def test_auto_does_not_interpret_on_the_cpu(interpret) -> None:
    interpret(auto_takes_another)


def finds_fault() -> None:
    assert_same(run("triton", (5, 7)), run("chunked", (5, 7), momentum=0.5))


def test_a_fault_in_the_other_process_fails_the_test(interpret) -> None:
    with pytest.raises(AssertionError, match="not close"):
        interpret(finds_fault)


@compiles
def test_without_the_interpreter_a_cpu_tensor_is_refused() -> None:
    with pytest.raises(RuntimeError, match="kernel='auto'"):
        run("triton", (5, 7))


@on_gpu
@needs_gpu
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 1000), (1000, 4096)], ids=str)
def test_compiled_equals_chunked(shape, options) -> None:
    assert_same(run("triton", shape, device="cuda", **options), run("chunked", shape, device="cuda", **options))


@compiles
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton may well work here")
def test_where_triton_fails_a_warning_names_the_cause_and_auto_takes_another() -> None:
    from sm3.kernels import triton_cuda

    triton_cuda.works.cache_clear()
    with pytest.warns(RuntimeWarning, match="SM3 takes its slower portable kernel, as Triton fails here"):
        assert not triton_cuda.works(torch.device("cpu"))
    triton_cuda.works.cache_clear()


@on_gpu
@needs_gpu
def test_offsets_beyond_2_to_the_31() -> None:
    shape = (2**20, 2**11 + 8)
    if torch.cuda.mem_get_info()[0] < 20 * math.prod(shape):
        pytest.skip("needs 43 GB")
    param = nn.Parameter(torch.zeros(shape, device="cuda"))
    param.grad = torch.ones_like(param)
    param.grad[-1, -1] = 2
    optimizer = SM3([param], lr=0.5, kernel="triton")
    optimizer.step()
    rows, columns = optimizer.state[param].values()
    assert torch.equal(param.detach().amax(), param.detach().amin())
    assert (rows[-1].item(), columns[-1].item(), rows[:-1].amax().item(), columns[:-1].amax().item()) == (4, 4, 1, 1)


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_parameter_on_a_device_that_is_not_the_current_one() -> None:
    expected, found = (run("triton", (40, 600), device=f"cuda:{index}") for index in range(2))
    assert torch.equal(expected[0], found[0])


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


TYPES = {"rows": "i32", "cols": "i32", "numel": "i32", "maxima": "*i32", "own_maxima": "*i32"}
POINTERS = ("param", "grad", "average", "row", "column", "lr_tensor", "accumulator")
CAPABILITIES = (80, 89, 90)


def compiled(kernel, capability=90, types=TYPES, multiples=(), **constants):
    """Compile a kernel for a GPU of a compute capability, which needs no GPU; `multiples` are of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = [param.name for param in kernel.params]
    kinds = {**dict.fromkeys(names, "fp32"), **dict.fromkeys(POINTERS, "*fp32"), **types}
    signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    whole = [name for name in names if signature[name].startswith("*") or name in multiples]
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in whole}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    options = {"enable_fp_fusion": False}
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def has_exact_root(ptx: str) -> bool:
    """Triton 3.4 flushes subnormals, which no sum of squares here is."""
    return "sqrt.rn.f32" in ptx or "sqrt.rn.ftz.f32" in ptx


def matrix_kernel(capability=90, **flags):
    from sm3.kernels import triton_kernels

    sizes = {"height": grid.HEIGHT, "width": grid.WIDTH}
    return compiled(triton_kernels.matrix_kernel, capability, **{**sizes, **flags})


@compiles
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_matrix_kernel_compiles_for_a_gpu_without_contraction(mode, by_rows) -> None:
    flags = {"averages": mode == 0, "decays": True, "lr_in_tensor": by_rows, "shared": by_rows}
    ptx = str(matrix_kernel(mode=mode, by_rows=by_rows, **flags).asm["ptx"])
    assert "fma.rn.f32" not in ptx
    assert has_exact_root(ptx) == (mode != 1)
    assert ("max.s32" in ptx) == (mode != 2)


def registers_and_stack(binary: bytes, path) -> tuple[int, int]:
    """Return the registers of a thread, and the bytes on its stack, where registers go that do not suffice."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton brings no cuobjdump")
    path.write_bytes(binary)
    shown = children.run([tool, "--dump-resource-usage", path]).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", shown)
    assert found, shown
    return int(found[1]), int(found[2])


@compiles
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_tile_with_momentum_fits_into_the_registers(capability, tmp_path) -> None:
    """Three blocks of 128 threads at once where the sizes are multiples of 16, as they mostly are."""
    flags = {"averages": True, "decays": True, "lr_in_tensor": True, "shared": True, "multiples": ("rows", "cols")}
    for by_rows in (True, False):
        built = matrix_kernel(capability, mode=0, by_rows=by_rows, **flags)
        registers, stack = registers_and_stack(built.asm["cubin"], tmp_path / "kernel.cubin")
        assert stack == 0
        assert registers * 128 * 3 <= 65536


@compiles
@pytest.mark.parametrize(
    "sizes", [{"rows": 1}, {"cols": 1}, {"types": {**TYPES, "rows": "i64", "cols": "i64"}}], ids=str
)
def test_the_matrix_kernel_compiles_for_every_kind_of_size(sizes) -> None:
    """Triton makes a constant of a 1, and takes more than 2^31 as a 64-bit number."""
    flags = {"averages": True, "decays": True, "lr_in_tensor": False, "shared": False}
    for by_rows in (True, False):
        assert has_exact_root(str(matrix_kernel(mode=0, by_rows=by_rows, **flags, **sizes).asm["ptx"]))


@compiles
def test_the_vector_kernel_compiles_for_a_gpu_without_contraction() -> None:
    from sm3.kernels import triton_kernels

    flags = {"averages": True, "decays": True, "lr_in_tensor": True}
    for capability in CAPABILITIES:
        ptx = str(compiled(triton_kernels.vector_kernel, capability, block=1024, **flags).asm["ptx"])
        assert "fma.rn.f32" not in ptx
        assert has_exact_root(ptx)
