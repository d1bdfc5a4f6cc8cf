"""Built-ins against transformers: the same weights and inputs give the same loss and the same gradients."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprof.documents.workload_spec import WorkloadSpec
from memprof.workloads.builtin.llama import _ROPE_BASE
from memprof.workloads.loader import load_workload

transformers = pytest.importorskip("transformers")

SMALL = {"n_layers": 2, "d_model": 16, "n_heads": 4, "seq_len": 8, "vocab_size": 50}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}


class Pair:
    """Our model and theirs, with each of our parameters tied by name to one of theirs."""

    def __init__(self, ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
        self.ours, self.theirs = ours, theirs
        convs = {id(m.weight) for m in theirs.modules() if type(m).__name__ == "Conv1D"}  # kept transposed
        their_parameters = dict(theirs.named_parameters())
        self.pairs = []
        for name, parameter in ours.named_parameters():
            other = their_parameters.pop(self._their_name(name, names))
            self.pairs.append((parameter, other, id(other) in convs))
        assert their_parameters == {}
        with torch.no_grad():
            for parameter, other, transposed in self.pairs:
                other.normal_(std=0.2)
                parameter.copy_(other.T if transposed else other)

    @staticmethod
    def _their_name(name: str, names: dict[str, str]) -> str:
        for ours, theirs in names.items():
            name, found = re.subn(rf"^{ours}(?=\.|$)", theirs, name)
            if found:
                return name
        raise KeyError(name)

    def agree(self, ours: Tensor, theirs: Tensor) -> None:
        assert torch.allclose(ours, theirs, atol=1e-5)
        ours.backward()
        theirs.backward()
        for parameter, other, transposed in self.pairs:
            assert parameter.grad is not None
            assert other.grad is not None
            assert torch.allclose(parameter.grad, other.grad.T if transposed else other.grad, atol=1e-5)


def build(name: str, **knobs: Any) -> Any:
    torch.manual_seed(0)
    return load_workload(WorkloadSpec(model=name, knobs={**SMALL, **knobs})).workload


def tokens_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def test_gpt2() -> None:
    workload = build("gpt2", dropout=0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=16, n_head=4, vocab_size=50))
    block = r"transformer.h.\1"
    names = {
        "tokens": "transformer.wte",
        "positions": "transformer.wpe",
        r"blocks\.(\d+)\.attention.qkv": rf"{block}.attn.c_attn",
        r"blocks\.(\d+)\.attention.out": rf"{block}.attn.c_proj",
        r"blocks\.(\d+)\.up": rf"{block}.mlp.c_fc",
        r"blocks\.(\d+)\.down": rf"{block}.mlp.c_proj",
        r"blocks\.(\d+)\.(ln_\d)": rf"{block}.\2",
        "ln_f": "transformer.ln_f",
    }
    pair = Pair(workload.model(), theirs.eval(), names)
    batch = workload.batch(3)
    loss = tokens_loss(theirs(input_ids=batch["ids"]).logits, batch["labels"])
    pair.agree(workload.loss(pair.ours, batch), loss)


def test_llama() -> None:
    workload = build("llama", n_kv_heads=2, d_ff=24, tie_embeddings=False)
    config = transformers.LlamaConfig.from_dict(
        {
            **SIZES,
            "num_key_value_heads": 2,
            "intermediate_size": 24,
            "rope_theta": _ROPE_BASE,
            "rms_norm_eps": 1e-5,
        }
    )
    theirs = transformers.LlamaForCausalLM(config)
    layer = r"model.layers.\1"
    names = {
        "tokens": "model.embed_tokens",
        r"blocks\.(\d+)\.norm_1": rf"{layer}.input_layernorm",
        r"blocks\.(\d+)\.norm_2": rf"{layer}.post_attention_layernorm",
        r"blocks\.(\d+)\.attention.query": rf"{layer}.self_attn.q_proj",
        r"blocks\.(\d+)\.attention.key": rf"{layer}.self_attn.k_proj",
        r"blocks\.(\d+)\.attention.value": rf"{layer}.self_attn.v_proj",
        r"blocks\.(\d+)\.attention.out": rf"{layer}.self_attn.o_proj",
        r"blocks\.(\d+)\.(gate|up|down)": rf"{layer}.mlp.\2_proj",
        "norm": "model.norm",
        "output": "lm_head",
    }
    pair = Pair(workload.model(), theirs, names)
    batch = workload.batch(3)
    loss = tokens_loss(theirs(input_ids=batch["ids"]).logits, batch["labels"])
    pair.agree(workload.loss(pair.ours, batch), loss)


def test_bert() -> None:
    workload = build("bert-large", d_ff=24, dropout=0)
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**SIZES, intermediate_size=24))
    layer = r"bert.encoder.layer.\1"
    names = {
        "token_bias": "cls.predictions.bias",
        "embeddings.tokens": "bert.embeddings.word_embeddings",
        "embeddings.positions": "bert.embeddings.position_embeddings",
        "embeddings.segments": "bert.embeddings.token_type_embeddings",
        "embeddings.norm": "bert.embeddings.LayerNorm",
        r"layers\.(\d+)\.attention.(query|key|value)": rf"{layer}.attention.self.\2",
        r"layers\.(\d+)\.attention.out": rf"{layer}.attention.output.dense",
        r"layers\.(\d+)\.ln_1": rf"{layer}.attention.output.LayerNorm",
        r"layers\.(\d+)\.up": rf"{layer}.intermediate.dense",
        r"layers\.(\d+)\.down": rf"{layer}.output.dense",
        r"layers\.(\d+)\.ln_2": rf"{layer}.output.LayerNorm",
        "pooler": "bert.pooler.dense",
        "transform": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "next_sentence": "cls.seq_relationship",
    }
    pair = Pair(workload.model(), theirs.eval(), names)
    batch = {**workload.batch(3), "masked": torch.tensor([[1], [4], [7]])}
    out = theirs(
        input_ids=batch["ids"],
        token_type_ids=batch["segments"],
        labels=torch.full((3, 8), -100).scatter(1, batch["masked"], batch["labels"]),
        next_sentence_label=batch["follows"],
    )
    pair.agree(workload.loss(pair.ours, batch), out.loss)
