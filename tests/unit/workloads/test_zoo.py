"""The built-ins: published parameter counts, the static table against the factories, a step of each."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.workloads.builtin import BUILTINS
from memprof.workloads.builtin.llama_sizes import LLAMA_PARAMETERS, LLAMA_SIZES
from memprof.workloads.loader import LoadedWorkload, load_workload
from tests import children
from tests.small_workloads import SMALL


def load(name: str, **knobs: Any) -> LoadedWorkload:
    return load_workload(WorkloadSpec(model=name, knobs=knobs))


def count(loaded: LoadedWorkload) -> int:
    with torch.device("meta"):
        model = loaded.workload.model()
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", BUILTINS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    assert count(load(name)) == BUILTINS[name].parameters


@pytest.mark.parametrize("size", LLAMA_SIZES)
def test_llama_parameter_count_is_the_published_one(size: str) -> None:
    assert count(load("llama", size=size)) == LLAMA_PARAMETERS[size]


@pytest.mark.parametrize("name", ["gpt2", "bert-large"])
def test_a_shorter_sample_keeps_the_position_table(name: str) -> None:
    assert count(load(name, seq_len=64)) == BUILTINS[name].parameters


def test_a_resnet101_is_a_resnet50_with_23_blocks() -> None:
    assert count(load("resnet50", n_blocks=23)) == 44_549_160  # torchvision's resnet101


@pytest.mark.parametrize("name", BUILTINS)
def test_table_agrees_with_the_factory(name: str) -> None:
    builtin = BUILTINS[name]
    defaults = {key: p.default for key, p in inspect.signature(builtin.factory).parameters.items()}
    preset = builtin.presets[str(defaults["size"])] if builtin.presets else {}
    assert dict(builtin.knobs) == {key: preset.get(key, value) for key, value in defaults.items()}
    assert all(defaults[key] is None for key in preset)
    assert (inspect.getdoc(builtin.factory) or "").splitlines()[0] == builtin.description
    assert builtin.factory().scale == builtin.scale in builtin.knobs


def test_the_table_is_read_without_torch() -> None:
    code = "import sys; from memprof.workloads.builtin import *; assert 'torch' not in sys.modules; print(*BUILTINS)"
    out = children.run([sys.executable, "-c", code]).stdout
    assert out.split() == list(BUILTINS)


@pytest.mark.parametrize("name", BUILTINS)
def test_a_step_gives_a_finite_loss_and_every_gradient(name: str) -> None:
    torch.manual_seed(0)
    workload = load(name, **SMALL[name]).workload
    model = workload.model()
    loss = workload.loss(model, workload.batch(3))
    assert loss.shape == ()
    assert torch.isfinite(loss)
    loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", BUILTINS)
def test_a_step_reads_no_tensor_values(name: str) -> None:
    with FakeTensorMode():
        workload = load(name, **SMALL[name]).workload
        model = workload.model()
        loss = workload.loss(model, workload.batch(3))
        loss.backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("name", BUILTINS)
def test_scale_makes_the_model_linearly_larger(name: str) -> None:
    small, scale = SMALL[name], BUILTINS[name].scale
    one, two, three = (count(load(name, **{**small, scale: n})) for n in (2, 3, 4))  # the first layer may be smaller
    assert three - two == two - one > 0


def test_tied_tables_are_one_parameter() -> None:
    model = load("llama", **SMALL["llama"]).workload.model()
    untied = load("llama", **SMALL["llama"], tie_embeddings=False).workload.model()
    extra = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in model.parameters())
    assert extra == 512 * 64


def test_causal_models_do_not_look_ahead() -> None:
    for name in ("gpt2", "llama"):
        model = load(name, **SMALL[name]).workload.model().eval()
        ids = torch.zeros(1, 8, dtype=torch.long)
        changed = ids.clone()
        changed[0, 5] = 7
        before, after = model(ids), model(changed)
        assert torch.equal(before[:, :5], after[:, :5])
        assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_rotary_attention_depends_on_distance_alone() -> None:
    from memprof.workloads.builtin.llama import rotary_tables, rotate

    torch.manual_seed(0)
    cos, sin = rotary_tables(32, 8)
    q, k = torch.randn(8), torch.randn(8)
    scores = rotate(q.expand(1, 1, 32, 8), cos, sin) @ rotate(k.expand(1, 1, 32, 8), cos, sin).mT
    assert torch.allclose(scores[0, 0, 10, 3], scores[0, 0, 25, 18], atol=1e-5)
    assert not torch.allclose(scores[0, 0, 10, 3], scores[0, 0, 10, 4], atol=1e-3)


def test_cross_attention_equals_pytorchs_own() -> None:
    from memprof.workloads.builtin.layers import Attention

    torch.manual_seed(0)
    ours = Attention(16, 4)
    theirs: Any = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.in_proj_weight, theirs.in_proj_bias = ours.qkv.weight, ours.qkv.bias
    theirs.out_proj.weight, theirs.out_proj.bias = ours.out.weight, ours.out.bias
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    assert torch.allclose(ours(x, memory), theirs(x, memory, memory)[0], atol=1e-6)
    assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)


def test_a_vit_block_equals_pytorchs_own() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 4, 24, 0, "gelu", 1e-6, batch_first=True, norm_first=True)
    ours: Any = load("vit-b16", **{**SMALL["vit-b16"], "d_model": 16, "d_ff": 24}).workload.model()
    block = ours.blocks[0]
    mine = (block.attention.qkv, block.attention.out, block.up, block.down, block.ln_1, block.ln_2)
    their_attention: Any = layer.self_attn
    theirs = (their_attention.out_proj, layer.linear1, layer.linear2, layer.norm1, layer.norm2)
    with torch.no_grad():
        their_attention.in_proj_weight.copy_(mine[0].weight)
        their_attention.in_proj_bias.copy_(mine[0].bias)
        for one, other in zip(mine[1:], theirs, strict=True):
            other.load_state_dict(one.state_dict())
    x = torch.randn(3, 5, 16)
    assert torch.allclose(block(x), layer(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_transformer_big_has_pytorchs_own_parameters() -> None:
    with torch.device("meta"):
        theirs = torch.nn.Transformer(1024, 16, 6, 6, 8192)
        ours = load("transformer-big").workload.model()
    shapes = sorted(tuple(p.shape) for p in theirs.parameters()) + 3 * [(32000, 1024)]
    assert sorted(tuple(p.shape) for p in ours.parameters()) == sorted(shapes)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("gpt2", {"n_heads": 5}, "n_heads=5 does not divide d_model=768"),
        ("bert-large", {"d_model": 1000}, "n_heads=16 does not divide d_model=1000"),
        ("transformer-big", {"n_heads": 7}, "n_heads=7 does not divide d_model=1024"),
        ("vit-b16", {"n_heads": 7}, "n_heads=7 does not divide d_model=768"),
        ("vit-b16", {"image_size": 225}, "patch_size=16 does not divide image_size=225"),
        ("llama", {"size": "9b"}, "llama has no size '9b'; choose from 13b, 1b"),
        ("llama", {"n_kv_heads": 5}, "n_kv_heads=5 does not divide n_heads=32"),
        ("llama", {"d_model": 96}, "d_model=96 over n_heads=32 is odd"),
        ("gpt2", {"n_layers": 0}, "the knob n_layers of gpt2 must be at least 1, not 0"),
        ("gpt2", {"n_layer": 2}, "gpt2 has no knob 'n_layer'; did you mean 'n_layers'?"),
        ("gpt2", {"n_layers": "two"}, "the knob n_layers of gpt2 is an int, not 'two'"),
        ("gpt2", {"n_layers": 2.5}, "the knob n_layers of gpt2 is an int, not 2.5"),
        ("gpt2", {"dropout": 1.5}, "the knob dropout of gpt2 must be from 0 up to 1, not 1.5"),
        ("llama", {"tie_embeddings": 1}, "the knob tie_embeddings of llama is true or false, not 1"),
    ],
)
def test_knobs_that_do_not_fit(name: str, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(name, **knobs)
    assert str(caught.value).startswith(message)


def test_knobs_are_filled_in_from_the_size() -> None:
    knobs = load("llama", size="70b", n_layers=2).knobs
    assert knobs == {"size": "70b", "seq_len": 2048, **LLAMA_SIZES["70b"], "n_layers": 2}
    assert load("gpt2", dropout=0).knobs["dropout"] == 0.0
