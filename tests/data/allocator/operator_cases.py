"""Operators, forward and backward, whose allocations on a GPU are recorded and predicted: one function per case.

Run by PyTorch's CUDA code (`real_operators.py`) and by the fakes; both see the same Python. Imports torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Case = Callable[[], Any]
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = {"fp32": FP32, "bf16": BF16, "fp16": FP16}
TWO = {"fp32": FP32, "bf16": BF16}


def leaf(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda", requires_grad=True)


def ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64, device="cuda")


def train(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Forward and backward; the output lives until its gradient is complete."""
    output = function(*inputs)
    output.backward(torch.empty_like(output))


def layer(make: Callable[[], nn.Module], *shape: int, dtype: torch.dtype = FP32) -> None:
    with torch.device("cuda"), as_default(dtype):
        module = make()
    train(module, leaf(*shape, dtype=dtype))


@contextmanager
def as_default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def attention(
    dtype: torch.dtype,
    width: int = 64,
    length: int = 200,
    *,
    keys: int | None = None,
    key_heads: int = 4,
    mask: torch.dtype | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    value_width: int | None = None,
) -> None:
    query = leaf(2, 4, length, width, dtype=dtype)
    key = leaf(2, key_heads, keys or length, width, dtype=dtype)
    value = leaf(2, key_heads, keys or length, value_width or width, dtype=dtype)
    bias = None if mask is None else torch.zeros(2, 1, length, keys or length, dtype=mask, device="cuda")
    run = partial(F.scaled_dot_product_attention, dropout_p=dropout, is_causal=causal, enable_gqa=key_heads != 4)
    train(partial(run, attn_mask=bias), query, key, value)


def _attention_cases() -> Iterable[tuple[str, Case]]:
    for name, dtype in DTYPES.items():
        for width in (16, 40, 64, 80, 128, 160, 200, 208, 256, 320):
            yield f"attention {name} width {width}", partial(attention, dtype, width)
        for length in (1, 77, 128, 1025):
            yield f"attention {name} length {length}", partial(attention, dtype, length=length, causal=True)
        yield f"attention {name} causal dropout", partial(attention, dtype, causal=True, dropout=0.1)
        yield f"attention {name} dropout 256", partial(attention, dtype, 256, dropout=0.1)
        yield f"attention {name} boolean mask", partial(attention, dtype, mask=torch.bool)
        yield f"attention {name} additive mask", partial(attention, dtype, mask=dtype, length=77)
        yield f"attention {name} mask dropout", partial(attention, dtype, mask=dtype, dropout=0.1, length=128)
        yield f"attention {name} cross", partial(attention, dtype, keys=333)
        yield f"attention {name} cross causal", partial(attention, dtype, keys=333, causal=True)
        yield f"attention {name} grouped", partial(attention, dtype, key_heads=2, causal=True)
        yield f"attention {name} grouped mask", partial(attention, dtype, key_heads=2, mask=torch.bool)
        yield f"attention {name} other value width", partial(attention, dtype, value_width=128)
        yield f"attention {name} odd width", partial(attention, dtype, 66)


def _product_cases() -> Iterable[tuple[str, Case]]:
    for name, dtype in TWO.items():
        for rows in (64, 1000, 4096):
            yield f"linear {name} {rows}", partial(layer, lambda: nn.Linear(96, 160), rows, 96, dtype=dtype)
        yield f"linear {name} 3d", partial(layer, lambda: nn.Linear(96, 160), 4, 50, 96, dtype=dtype)
        yield f"linear {name} no bias", partial(layer, lambda: nn.Linear(96, 160, bias=False), 4, 50, 96, dtype=dtype)
        yield f"linear {name} one output", partial(layer, lambda: nn.Linear(96, 1), 64, 96, dtype=dtype)
        yield (
            f"linear gelu {name}",
            partial(layer, lambda: nn.Sequential(nn.Linear(96, 160), nn.GELU()), 64, 96, dtype=dtype),
        )

        def product(*shapes: tuple[int, ...], dtype: torch.dtype = dtype) -> None:
            train(torch.matmul, *(leaf(*shape, dtype=dtype) for shape in shapes))

        yield f"matmul {name} 2d 2d", partial(product, (64, 96), (96, 128))
        yield f"matmul {name} 3d 2d", partial(product, (8, 64, 96), (96, 128))
        yield f"matmul {name} 2d 3d", partial(product, (64, 96), (8, 96, 128))
        yield f"matmul {name} 4d 4d", partial(product, (2, 8, 64, 96), (2, 8, 96, 128))
        yield f"matmul {name} broadcast", partial(product, (2, 8, 64, 96), (8, 96, 128))
        yield f"matmul {name} vector", partial(product, (64, 96), (96,))
        yield f"matmul {name} dot", partial(product, (96,), (96,))
        yield (
            f"matmul {name} transposed",
            lambda dtype=dtype: train(
                lambda a, b: a @ b.transpose(1, 2), leaf(8, 64, 96, dtype=dtype), leaf(8, 128, 96, dtype=dtype)
            ),
        )
    yield "addmm", lambda: train(torch.addmm, leaf(128), leaf(64, 96), leaf(96, 128))
    yield "addmm 2d", lambda: train(torch.addmm, leaf(64, 128), leaf(64, 96), leaf(96, 128))
    yield "baddbmm", lambda: train(torch.baddbmm, leaf(8, 64, 128), leaf(8, 64, 96), leaf(8, 96, 128))
    yield "einsum", lambda: train(partial(torch.einsum, "bhd,bkd->bhk"), leaf(8, 64, 96), leaf(8, 32, 96))


def _norm_cases() -> Iterable[tuple[str, Case]]:
    for name, dtype in TWO.items():
        for rows, width in (
            (8, 64),
            (64, 1024),
            (512, 768),
            (2048, 768),
            (4096, 100),
            (128, 8192),
            (40000, 64),
            (1000, 1001),
            (65537, 96),
        ):
            yield (
                f"layer norm {name} {rows} {width}",
                partial(layer, lambda width=width: nn.LayerNorm(width), rows, width, dtype=dtype),
            )
            yield (
                f"rms norm {name} {rows} {width}",
                partial(layer, lambda width=width: nn.RMSNorm(width), rows, width, dtype=dtype),
            )
        yield f"layer norm {name} 3d", partial(layer, lambda: nn.LayerNorm(768), 4, 256, 768, dtype=dtype)
        yield (
            f"layer norm {name} plain",
            partial(layer, lambda: nn.LayerNorm(768, elementwise_affine=False), 512, 768, dtype=dtype),
        )
        yield f"layer norm {name} no bias", partial(layer, lambda: nn.LayerNorm(768, bias=False), 512, 768, dtype=dtype)
        yield f"group norm {name}", partial(layer, lambda: nn.GroupNorm(8, 64), 4, 64, 28, 28, dtype=dtype)
        yield f"group norm {name} small", partial(layer, lambda: nn.GroupNorm(4, 16), 2, 16, 3, 3, dtype=dtype)
        yield (
            f"group norm {name} plain",
            partial(layer, lambda: nn.GroupNorm(8, 64, affine=False), 4, 64, 28, 28, dtype=dtype),
        )
        yield f"batch norm {name} 2d input", partial(layer, lambda: nn.BatchNorm1d(64), 256, 64, dtype=dtype)
    yield "instance norm", partial(layer, lambda: nn.InstanceNorm2d(16), 4, 16, 28, 28)
    yield "batch norm bf16 4d", partial(layer, lambda: nn.BatchNorm2d(64), 8, 64, 28, 28, dtype=BF16)
    yield (
        "batch norm bf16 channels last",
        lambda: train(
            nn.BatchNorm2d(64, device="cuda", dtype=BF16),
            torch.empty(8, 64, 28, 28, dtype=BF16, device="cuda", memory_format=torch.channels_last).requires_grad_(),
        ),
    )
    yield "local response norm", partial(layer, lambda: nn.LocalResponseNorm(5), 4, 64, 28, 28)
    yield "normalize", lambda: train(F.normalize, leaf(512, 768))
    yield (
        "weight norm",
        lambda: train(torch.nn.utils.parametrizations.weight_norm(nn.Linear(96, 160, device="cuda")), leaf(64, 96)),
    )


def _loss_cases() -> Iterable[tuple[str, Case]]:
    for name, dtype in DTYPES.items():
        for axis in (-1, 0, 1):
            yield (
                f"softmax {name} {axis}",
                lambda dtype=dtype, axis=axis: train(lambda x: x.softmax(axis), leaf(8, 50, 100, dtype=dtype)),
            )
            yield (
                f"log softmax {name} {axis}",
                lambda dtype=dtype, axis=axis: train(lambda x: x.log_softmax(axis), leaf(8, 50, 100, dtype=dtype)),
            )
        yield (
            f"softmax {name} in float32",
            lambda dtype=dtype: train(lambda x: F.softmax(x, -1, dtype=FP32), leaf(8, 50, 100, dtype=dtype)),
        )
        yield (
            f"cross entropy {name}",
            lambda dtype=dtype: train(F.cross_entropy, leaf(512, 1000, dtype=dtype), ids(512)),
        )
        yield (
            f"cross entropy {name} smooth",
            lambda dtype=dtype: train(
                partial(F.cross_entropy, label_smoothing=0.1), leaf(512, 1000, dtype=dtype), ids(512)
            ),
        )
        yield (
            f"cross entropy {name} 4d",
            lambda dtype=dtype: train(F.cross_entropy, leaf(2, 10, 64, 64, dtype=dtype), ids(2, 64, 64)),
        )
    yield (
        "cross entropy weighted",
        lambda: train(lambda x, y: F.cross_entropy(x, y, torch.empty(1000, device="cuda")), leaf(512, 1000), ids(512)),
    )
    yield (
        "cross entropy probabilities",
        lambda: train(F.cross_entropy, leaf(512, 1000), torch.empty(512, 1000, device="cuda")),
    )
    yield "cross entropy sum", lambda: train(partial(F.cross_entropy, reduction="sum"), leaf(512, 1000), ids(512))
    yield "nll", lambda: train(F.nll_loss, leaf(512, 1000), ids(512))
    for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits", "kl_div"):
        yield name, lambda name=name: train(getattr(F, name), leaf(512, 100), torch.empty(512, 100, device="cuda"))
    yield "bce", lambda: train(lambda x: F.binary_cross_entropy(x.sigmoid(), torch.empty_like(x)), leaf(512, 100))
    yield "cosine embedding", lambda: train(F.cosine_similarity, leaf(512, 100), leaf(512, 100))


def _embedding_cases() -> Iterable[tuple[str, Case]]:
    for name, dtype in TWO.items():
        for count in (100, 3072, 3073, 8192, 40000):
            for rows, width in ((1000, 96), (30000, 64)):
                yield (
                    f"embedding {name} {count} of {rows}",
                    lambda d=dtype, c=count, r=rows, w=width: train(F.embedding, ids(c), leaf(r, w, dtype=d)),
                )
        yield (
            f"embedding {name} padding",
            lambda d=dtype: train(lambda i, w: F.embedding(i, w, padding_idx=0), ids(4, 2000), leaf(1000, 96, dtype=d)),
        )
        yield (
            f"embedding {name} by frequency",
            lambda d=dtype: train(
                lambda i, w: F.embedding(i, w, scale_grad_by_freq=True), ids(4, 2000), leaf(1000, 96, dtype=d)
            ),
        )
        for mode in ("sum", "mean", "max"):
            yield (
                f"embedding bag {name} {mode}",
                lambda d=dtype, m=mode: train(
                    lambda i, w: F.embedding_bag(i, w, mode=m), ids(64, 20), leaf(1000, 96, dtype=d)
                ),
            )
    yield (
        "embedding float32 output",
        lambda: train(lambda i, w: F.embedding(i, w).float(), ids(8000), leaf(1000, 96, dtype=BF16)),
    )


def _pointwise_cases() -> Iterable[tuple[str, Case]]:
    names = (
        "gelu",
        "silu",
        "relu",
        "leaky_relu",
        "elu",
        "mish",
        "hardswish",
        "softplus",
        "sigmoid",
        "tanh",
        "relu6",
        "glu",
    )
    for name in (*names, "hardsigmoid", "logsigmoid", "selu"):
        yield name, lambda name=name: train(getattr(F, name), leaf(512, 100))
    yield "gelu tanh", lambda: train(partial(F.gelu, approximate="tanh"), leaf(512, 100, dtype=BF16))
    yield "relu in place", lambda: train(lambda x: F.relu(x * 2, inplace=True), leaf(512, 100))
    yield "prelu", partial(layer, lambda: nn.PReLU(), 512, 100)
    for name, dtype in TWO.items():
        yield f"dropout {name}", lambda d=dtype: train(partial(F.dropout, p=0.1), leaf(512, 100, dtype=d))
    yield "dropout 2d", lambda: train(partial(F.dropout2d, p=0.1), leaf(8, 16, 28, 28))
    yield "alpha dropout", lambda: train(partial(F.alpha_dropout, p=0.1, training=True), leaf(512, 100))
    for name in ("exp", "log", "sqrt", "rsqrt", "sin", "cos", "abs", "square", "reciprocal", "erf", "logsumexp"):
        args = (-1,) if name == "logsumexp" else ()
        yield name, lambda name=name, args=args: train(lambda x: getattr(torch, name)(x, *args), leaf(512, 100))
    yield "pow", lambda: train(lambda x: x**3, leaf(512, 100))
    yield "multiply", lambda: train(torch.mul, leaf(512, 100), leaf(100))
    yield "divide", lambda: train(torch.div, leaf(512, 100), leaf(512, 1))
    yield "add mixed", lambda: train(torch.add, leaf(512, 100), leaf(512, 100, dtype=BF16))
    yield "where", lambda: train(lambda x, y: torch.where(x > 0, x, y), leaf(512, 100), leaf(512, 100))
    yield "where scalar", lambda: train(lambda x: torch.where(x > 0, x, 0.0), leaf(512, 100))
    yield "masked fill", lambda: train(lambda x: x.masked_fill(x > 0, float("-inf")), leaf(512, 100))
    yield (
        "masked fill broadcast",
        lambda: train(lambda x: x.masked_fill(torch.zeros(100, dtype=torch.bool, device="cuda"), 0.0), leaf(512, 100)),
    )
    yield "clamp", lambda: train(lambda x: x.clamp(0, 1), leaf(512, 100))
    yield "maximum", lambda: train(torch.maximum, leaf(512, 100), leaf(512, 100))
    yield "lerp", lambda: train(lambda x, y: x.lerp(y, 0.5), leaf(512, 100), leaf(512, 100))
    yield "addcmul", lambda: train(torch.addcmul, leaf(512, 100), leaf(512, 100), leaf(512, 100))
    yield "to bf16", lambda: train(lambda x: x.to(BF16), leaf(512, 100))
    yield "sum twice used", lambda: train(lambda x: x.exp() + x.sin() + x.cos(), leaf(512, 100))


def _shape_cases() -> Iterable[tuple[str, Case]]:
    yield "cat", lambda: train(lambda *x: torch.cat(x, 1), leaf(64, 100), leaf(64, 50))
    yield "cat rows", lambda: train(lambda *x: torch.cat(x), leaf(64, 100), leaf(32, 100))
    yield "cat 200", lambda: train(lambda x: torch.cat([x] * 200), leaf(8, 10))
    yield "stack", lambda: train(lambda *x: torch.stack(x), leaf(64, 100), leaf(64, 100))
    yield "split", lambda: train(lambda x: torch.mul(*x.split(50, 1)), leaf(64, 100))
    yield "chunk", lambda: train(lambda x: torch.mul(*x.chunk(2, 0)), leaf(64, 100))
    yield "unbind", lambda: train(lambda x: torch.mul(*x.unbind(0)), leaf(2, 100))
    yield "permute contiguous", lambda: train(lambda x: x.permute(2, 0, 1).contiguous(), leaf(4, 64, 100))
    yield "slice", lambda: train(lambda x: x[:, 3:50], leaf(64, 100))
    yield "slice sum", lambda: train(lambda x: x[:, 3:50] + x[:, :47], leaf(64, 100))
    yield "select", lambda: train(lambda x: x[:, 0], leaf(64, 100))
    yield "expand", lambda: train(lambda x: x.expand(64, 100) * 2, leaf(1, 100))
    yield "repeat", lambda: train(lambda x: x.repeat(3, 2), leaf(64, 100))
    yield "repeat interleave", lambda: train(lambda x: x.repeat_interleave(3, 1), leaf(64, 100))
    yield "roll", lambda: train(lambda x: x.roll(3, 1), leaf(64, 100))
    yield "flip", lambda: train(lambda x: x.flip(1), leaf(64, 100))
    yield "tril", lambda: train(torch.tril, leaf(64, 100))
    yield "pad", lambda: train(lambda x: F.pad(x, (1, 1)), leaf(64, 100))
    yield "pad reflect", lambda: train(lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect"), leaf(2, 3, 64, 100))
    yield "pixel shuffle", lambda: train(lambda x: F.pixel_shuffle(x, 2), leaf(2, 16, 32, 32))
    yield (
        "complex rotation",
        lambda: train(
            lambda x: torch.view_as_real(torch.view_as_complex(x) * torch.polar(*torch.empty(2, 50, device="cuda"))),
            leaf(64, 50, 2),
        ),
    )
    yield "arange", lambda: torch.arange(1000, device="cuda") + torch.arange(0, 1, 0.01, device="cuda").sum()
    yield "one hot", lambda: F.one_hot(ids(64), 10)
    yield "causal mask", lambda: torch.full((100, 100), float("-inf"), device="cuda").triu(1)
    yield (
        "meshgrid",
        lambda: torch.stack(torch.meshgrid(torch.arange(8.0, device="cuda"), torch.arange(9.0, device="cuda"))),
    )


def _index_cases() -> Iterable[tuple[str, Case]]:
    for count in (10, 1000, 20000):
        yield f"index {count}", lambda c=count: train(lambda x, i: x[i], leaf(1000, 96), ids(c))
        yield f"index two {count}", lambda c=count: train(lambda x, i: x[i, i], leaf(100, 96), ids(c))
        yield f"index column {count}", lambda c=count: train(lambda x, i: x[:, i], leaf(8, 100, 16), ids(c))
        yield f"index select {count}", lambda c=count: train(lambda x, i: x.index_select(0, i), leaf(1000, 96), ids(c))
        yield (
            f"index put {count}",
            lambda c=count: train(lambda x, y, i: x.index_put((i,), y), leaf(1000, 96), leaf(c, 96), ids(c)),
        )
        yield (
            f"index put accumulate {count}",
            lambda c=count: train(
                lambda x, y, i: x.index_put((i,), y, accumulate=True), leaf(1000, 96), leaf(c, 96), ids(c)
            ),
        )
        yield (
            f"index add {count}",
            lambda c=count: train(lambda x, y, i: x.index_add(0, i, y), leaf(1000, 96), leaf(c, 96), ids(c)),
        )
        yield f"sort {count}", lambda c=count: train(lambda x: x.sort()[0], leaf(16, c))
        yield f"argsort {count}", lambda c=count: ids(c).argsort()
        yield f"cumsum {count}", lambda c=count: train(lambda x: x.cumsum(-1), leaf(c))
        yield f"cumsum rows {count}", lambda c=count: train(lambda x: x.cumsum(0), leaf(c, 16))
        yield f"cumsum integers {count}", lambda c=count: ids(4, c).cumsum(-1)
        yield f"topk {count}", lambda c=count: train(lambda x: x.topk(5)[0], leaf(16, c))
    yield "sort long", lambda: train(lambda x: x.sort()[0], leaf(100_000))
    yield "sort descending", lambda: train(lambda x: x.sort(0, descending=True)[0], leaf(5000, 4))
    yield "topk long", lambda: train(lambda x: x.topk(50)[0], leaf(4, 300_000))
    yield "gather", lambda: train(lambda x, i: x.gather(1, i), leaf(64, 100), ids(64, 20))
    yield "scatter", lambda: train(lambda x, y, i: x.scatter(1, i, y), leaf(64, 100), leaf(64, 20), ids(64, 20))
    yield "scatter add", lambda: train(lambda x, y, i: x.scatter_add(1, i, y), leaf(64, 100), leaf(64, 20), ids(64, 20))
    yield (
        "scatter reduce",
        lambda: train(lambda x, y, i: x.scatter_reduce(1, i, y, "amax"), leaf(64, 100), leaf(64, 20), ids(64, 20)),
    )
    yield "take along", lambda: train(lambda x, i: x.take_along_dim(i, 1), leaf(64, 100), ids(64, 20))
    yield (
        "relative position bias",
        lambda: train(
            lambda t, i: t[i.view(-1)].view(49, 49, 4).permute(2, 0, 1).contiguous(), leaf(169, 4), ids(49, 49)
        ),
    )
    yield "assign slice", lambda: train(lambda x: _assigned(torch.zeros(64, 200, device="cuda"), x), leaf(64, 100))
    yield "argmax", lambda: leaf(64, 100).argmax(-1)
    yield (
        "bincount free searchsorted",
        lambda: torch.searchsorted(torch.empty(100, device="cuda"), torch.empty(50, device="cuda")),
    )


def _assigned(room: Tensor, value: Tensor) -> Tensor:
    room[:, 50:150] = value
    return room


def _reduction_cases() -> Iterable[tuple[str, Case]]:
    for name in ("sum", "mean", "amax", "amin", "std", "var", "norm"):
        yield f"{name} all", lambda name=name: train(lambda x: getattr(x, name)(), leaf(512, 1000))
        yield f"{name} rows", lambda name=name: train(lambda x: getattr(x, name)(dim=-1), leaf(512, 1000))
        yield f"{name} columns", lambda name=name: train(lambda x: getattr(x, name)(dim=0), leaf(512, 1000))
    yield "max all", lambda: train(lambda x: x.max(), leaf(512, 1000))
    yield "max rows", lambda: train(lambda x: x.max(-1)[0], leaf(512, 1000))
    yield "sum large", lambda: train(lambda x: x.sum(), leaf(4096, 4096))
    yield "sum bf16 large", lambda: train(lambda x: x.sum(), leaf(4096, 4096, dtype=BF16))
    yield "sum columns tall", lambda: train(lambda x: x.sum(0), leaf(100_000, 16))
    yield "mean of images", lambda: train(lambda x: x.mean((2, 3)), leaf(8, 256, 14, 14))
    yield "any", lambda: leaf(512, 1000).isnan().any()
    yield "broadcast gradient", lambda: train(torch.add, leaf(64, 50, 768), leaf(768))
    yield (
        "broadcast gradient bf16",
        lambda: train(torch.add, leaf(64, 50, 768, dtype=BF16), leaf(1, 50, 768, dtype=BF16)),
    )


def _pool_cases() -> Iterable[tuple[str, Case]]:
    for name, dtype in TWO.items():
        yield f"max pool {name}", partial(layer, lambda: nn.MaxPool2d(3, 2, 1), 8, 16, 28, 28, dtype=dtype)
        yield f"average pool {name}", partial(layer, lambda: nn.AvgPool2d(2), 8, 16, 28, 28, dtype=dtype)
        yield (
            f"adaptive average pool {name}",
            partial(layer, lambda: nn.AdaptiveAvgPool2d(1), 8, 16, 28, 28, dtype=dtype),
        )
        yield (
            f"adaptive average pool {name} 7",
            partial(layer, lambda: nn.AdaptiveAvgPool2d(7), 8, 16, 30, 30, dtype=dtype),
        )
    yield "adaptive max pool", partial(layer, lambda: nn.AdaptiveMaxPool2d(7), 8, 16, 28, 28)
    yield "max pool 1d", partial(layer, lambda: nn.MaxPool1d(2), 8, 16, 100)
    yield "average pool 1d", partial(layer, lambda: nn.AvgPool1d(2), 8, 16, 100)
    yield (
        "max pool channels last",
        lambda: train(
            nn.MaxPool2d(3, 2, 1),
            torch.empty(8, 16, 28, 28, device="cuda", requires_grad=True, memory_format=torch.channels_last),
        ),
    )
    for mode in ("nearest", "bilinear", "bicubic"):
        yield (
            f"interpolate {mode}",
            lambda mode=mode: train(lambda x: F.interpolate(x, scale_factor=2.0, mode=mode), leaf(4, 16, 28, 28)),
        )
    yield "grid sample", lambda: train(lambda x, g: F.grid_sample(x, g), leaf(2, 3, 32, 32), leaf(2, 16, 16, 2))


def _autocast_cases() -> Iterable[tuple[str, Case]]:
    for name in ("bf16", "fp16"):
        for what in ("mlp", "norm", "attention", "tied", "loss"):
            yield f"autocast {name} {what}", partial(_autocast, DTYPES[name], what)


def _autocast(dtype: torch.dtype, what: str) -> None:
    first, second = nn.Linear(96, 160, device="cuda"), nn.Linear(160, 96, device="cuda")
    norm = nn.LayerNorm(96, device="cuda")
    x = leaf(64, 96)
    with torch.autocast("cuda", dtype):
        if what == "mlp":
            y = second(F.gelu(first(x)))
        elif what == "norm":
            y = norm(second(first(norm(x))))
        elif what == "attention":
            heads = first(x)[:, :96].view(1, 64, 4, 24).transpose(1, 2)
            y = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        elif what == "tied":
            y = F.linear(F.linear(x, first.weight), first.weight.t()) + norm(x).softmax(-1)
        else:
            y = F.cross_entropy(second(first(x)), ids(64)) + F.mse_loss(second(first(x)), x)
    y.sum().backward()


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "SGD momentum": {"momentum": 0.9},
    "SGD nesterov decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "Adam": {},
    "Adam amsgrad decay": {"amsgrad": True, "weight_decay": 0.1},
    "AdamW": {},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "Adagrad": {},
    "Adadelta": {},
    "RMSprop": {},
    "RMSprop centered momentum": {"centered": True, "momentum": 0.9},
    "Rprop": {},
    "ASGD": {},
    "Adafactor": {},
    "Muon": {},
}
FUSED = ("SGD", "SGD momentum", "Adam", "AdamW", "Adagrad")


def optimize(name: str, dtype: torch.dtype = FP32, **options: Any) -> None:
    shapes = [(1000, 96), (96,), (300, 300), (5, 7)]
    if name == "Muon":
        shapes = [shape for shape in shapes if len(shape) == 2]
    parameters = [nn.Parameter(torch.empty(shape, dtype=dtype, device="cuda")) for shape in shapes]
    optimizer = getattr(torch.optim, name.split(maxsplit=1)[0])(parameters, **OPTIMIZERS[name], **options)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad()


def _optimizer_cases() -> Iterable[tuple[str, Case]]:
    for name in OPTIMIZERS:
        if not hasattr(torch.optim, name.split(maxsplit=1)[0]):
            continue
        yield f"{name}", partial(optimize, name)
        yield f"{name} bf16", partial(optimize, name, BF16)
        if name not in ("Adafactor", "Muon"):
            yield f"{name} for-loop", partial(optimize, name, foreach=False)
    for name in FUSED:
        yield f"{name} fused", partial(optimize, name, fused=True)


def clip(dtype: torch.dtype, count: int = 3, norm: float = 2.0) -> None:
    parameters = [nn.Parameter(torch.empty(700, 300, dtype=dtype, device="cuda")) for _ in range(count)]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    nn.utils.clip_grad_norm_(parameters, 1.0, norm)


def _step_cases() -> Iterable[tuple[str, Case]]:
    for name, dtype in DTYPES.items():
        yield f"clip {name}", partial(clip, dtype)
    yield "clip 300", partial(clip, FP32, 300)
    yield "clip infinity", partial(clip, FP32, 3, float("inf"))
    yield (
        "checkpoint",
        lambda: train(
            lambda x: torch.utils.checkpoint.checkpoint(lambda y: y.exp().sin(), x, use_reentrant=False) * 2,
            leaf(512, 100),
        ),
    )
    yield (
        "transformer layer",
        partial(layer, lambda: nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 4, 50, 64),
    )
    yield (
        "multihead attention",
        lambda: train(
            lambda x: nn.MultiheadAttention(64, 4, batch_first=True, device="cuda")(x, x, x, need_weights=False)[0],
            leaf(4, 50, 64),
        ),
    )


GROUPS: dict[str, Callable[[], Iterable[tuple[str, Case]]]] = {
    "attention": _attention_cases,
    "products": _product_cases,
    "norms": _norm_cases,
    "losses": _loss_cases,
    "embeddings": _embedding_cases,
    "pointwise": _pointwise_cases,
    "shapes": _shape_cases,
    "indices": _index_cases,
    "reductions": _reduction_cases,
    "pools": _pool_cases,
    "autocast": _autocast_cases,
    "optimizers": _optimizer_cases,
    "steps": _step_cases,
}


def cases() -> dict[str, Case]:
    """Return every case by name."""
    return {f"{group}: {name}": case for group, make in GROUPS.items() for name, case in make()}
