"""The contract of every kernel: the bits of the chunked one, for all that it takes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sm3 import SM3
from sm3.kernels import compiler

needs_compiler = pytest.mark.skipif(compiler.library() is None, reason="no C++ compiler with OpenMP here")
SHAPES = [
    (),
    (1,),
    (70_001,),
    (5, 7),
    (1, 9),
    (9, 1),
    (300, 257),
    (257, 3000),
    (2, 70_001),
    (3, 4, 5),
    (1, 6, 1),
    (64, 32, 3, 3),
    (3, 5, 2, 4, 2),
]
OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "momentum_dtype": "bfloat16"},
    {"beta": 0.9},
    {"weight_decay": 0.1, "maximize": True},
    {"beta": 0.5, "momentum": 0.5, "weight_decay": 0.1, "maximize": True, "eps": 1e-3},
]


def run(kernel: str, shape, dtype=torch.float32, steps=3, layout=torch.contiguous_format, **options):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout)
    param = nn.Parameter(start)
    optimizer = SM3([param], lr=0.3, kernel=kernel, **options)
    for _ in range(steps):
        grad = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.7)
        param.grad = grad.to(dtype).contiguous(memory_format=layout)
        optimizer.step()
    return param.detach(), optimizer.state[param], optimizer.kernel


def assert_same(first, second) -> None:
    assert torch.equal(first[0], second[0])
    assert first[1].keys() == second[1].keys()
    for key, value in first[1].items():
        assert torch.equal(value, second[1][key]), key


@needs_compiler
@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_equals_chunked(shape, dtype, options, variant) -> None:
    native = run("native", shape, dtype, variant=variant, **options)
    assert native[2] == "native"
    assert_same(native, run("chunked", shape, dtype, variant=variant, **options))


@needs_compiler
@pytest.mark.parametrize("options", [{"cover": "singleton"}, {"momentum": 0.9}, {"variant": "I"}], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_layouts_and_the_singletons(options, layout) -> None:
    found = [run(kernel, (8, 6, 5, 5), layout=layout, **options) for kernel in ("auto", "chunked")]
    in_order = layout == torch.contiguous_format or "cover" not in options
    assert found[0][2] == ("native" if in_order else "chunked")
    assert_same(*found)


def with_threads(threads: int, shape):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        return run("native", shape, momentum=0.9)
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", [(500, 300), (300, 7000), (70_001,)])
def test_threads_change_no_bit(shape, threads) -> None:
    alone, together = with_threads(1, shape), with_threads(threads, shape)
    assert torch.equal(alone[0], together[0])
    assert all(torch.equal(value, together[1][key]) for key, value in alone[1].items())


@needs_compiler
@pytest.mark.parametrize("place", [(0, 0), (3, 2)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
def test_nan_and_inf_spread_alike(shape, value, place) -> None:
    results = []
    for kernel in ("native", "chunked"):
        param = nn.Parameter(torch.ones(shape))
        optimizer = SM3([param], kernel=kernel)
        for step in range(3):
            param.grad = torch.ones(shape)
            param.grad[place] = value if step == 0 else 1.0
            optimizer.step()
        results.append([param.detach(), *optimizer.state[param].values()])
    for native, chunked in zip(*results, strict=True):
        assert torch.equal(native.isnan(), chunked.isnan())
        assert torch.equal(native.nan_to_num(), chunked.nan_to_num())


@needs_compiler
def test_auto_takes_native_and_falls_back_by_parameter() -> None:
    fast, slow = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = SM3([{"params": [fast]}, {"params": [slow], "cover": "whole"}])
    for param in (fast, slow):
        param.grad = torch.ones(3, 3)
    optimizer.step()
    assert optimizer.kernel == "chunked+native"


def test_without_a_compiler_the_portable_kernel_runs(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler.library.cache_clear()
    try:
        assert run("auto", (3, 4))[2] == "chunked"
        with pytest.raises(RuntimeError, match="kernel='auto'"):
            run("native", (3, 4))
    finally:
        compiler.library.cache_clear()


def test_a_compiler_that_hangs_is_waited_for_once(monkeypatch, tmp_path) -> None:
    script = tmp_path / "c++"
    script.write_text(f"#!/bin/sh\necho started >> {tmp_path / 'starts'}\nexec sleep 1000\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "SECONDS", 2)
    try:
        for pause, starts in ((3600, 1), (3600, 1), (0, 2)):  # as in three processes
            monkeypatch.setattr(compiler, "PAUSE", pause)
            compiler.library.cache_clear()
            assert compiler.library() is None
            assert (tmp_path / "starts").read_text() == "started\n" * starts
    finally:
        compiler.library.cache_clear()


@needs_compiler
def test_the_compiled_kernel_is_cached(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "FLAGS", ("-O0", *compiler.FLAGS[1:]))  # compiled in a fifth of the time
    compiler.library.cache_clear()
    try:
        assert run("native", (3, 4))[2] == "native"
        (built,) = (tmp_path / "sm3").iterdir()
        stamp = built.stat().st_mtime_ns
        compiler.library.cache_clear()
        assert run("native", (3, 4))[2] == "native"
        assert built.stat().st_mtime_ns == stamp
    finally:
        compiler.library.cache_clear()


def test_fake_tensors_get_the_portable_kernel() -> None:
    """A memory profiler runs the optimizer on tensors without data: no kernel may read their pointers."""
    with FakeTensorMode():
        param = nn.Parameter(torch.empty(3000, 4000))
        optimizer = SM3([param], momentum=0.9)
        param.grad = torch.empty(3000, 4000)
        optimizer.step()
    assert optimizer.kernel == "chunked"
    assert [tuple(v.shape) for v in optimizer.state[param].values()] == [(3000,), (4000,), (3000, 4000)]


class _Count(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["I", "II"])
def test_a_step_without_data_takes_one_tile(variant) -> None:
    """Else predicting the memory of a large model would take as many operations as training it."""
    param = nn.Parameter(torch.empty(100_000, 8192, device="meta"))
    optimizer = SM3([param], variant=variant)
    param.grad = torch.empty_like(param)
    with _Count() as count:
        optimizer.step()
    assert count.calls < 60
    assert [value.device.type for value in optimizer.state[param].values()] == ["meta", "meta"]


@pytest.mark.parametrize("kernel", ["auto", "chunked"])
def test_a_step_invalidates_what_backward_saved(kernel) -> None:
    param = nn.Parameter(torch.ones(3, 3))
    loss = (param**3).sum()
    param.grad = torch.ones(3, 3)
    SM3([param], kernel=kernel).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
