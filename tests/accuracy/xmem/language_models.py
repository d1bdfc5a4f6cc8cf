"""The transformer workloads of the measured runs: architectures from transformers 4.51.3, no weights, float32.

Their loop keeps the model's whole output (logits and, where the model makes them, keys and values) in a local
variable until the next step's forward pass has returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memprof import Workload
from tests.accuracy.xmem.lengths import LONGEST, draw_lengths, full_lengths

FULL = -1  # in place of a shuffle's seed: every line is cut at the longest length
_PADDED_AHEAD = ("EleutherAI/pythia", "deepseek-ai/DeepSeek-R1", "Qwen/Qwen3")  # by the runs' own list of names

_NEO = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": [[["global", "local"], 6]]}
_OPT_350M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "ffn_dim": 4096,
    "num_attention_heads": 16,
    "do_layer_norm_before": False,
    "word_embed_proj_dim": 512,
}
_CEREBRAS = {"n_embd": 768, "n_layer": 10, "n_head": 12, "n_positions": 2048, "n_inner": 3072}
_T5 = {"vocab_size": 32128, "d_kv": 64, "decoder_start_token_id": 0, "pad_token_id": 0}
_QWEN3 = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "tie_word_embeddings": True}
_LLAMA_3B = {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
_DEEPSEEK = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
_GEMMA = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
_PYTHIA = {"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}

# Name in the table: architecture, its configuration on the hub, tokens that the tokenizer adds to a line.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "openai-community/gpt2": ("GPT2", {}, 0),
    "distilbert/distilgpt2": ("GPT2", {"n_layer": 6}, 0),
    "cerebras/Cerebras-GPT-111M": ("GPT2", {**_CEREBRAS, "activation_function": "gelu"}, 0),
    "EleutherAI/gpt-neo-125M": ("GPTNeo", _NEO, 0),
    "facebook/opt-125m": ("OPT", {}, 1),
    "facebook/opt-350m": ("OPT", _OPT_350M, 1),
    "T5-small": ("T5", {**_T5, "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8}, 1),
    "t5-base": ("T5", {**_T5, "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}, 1),
    "EleutherAI/pythia-1b": ("GPTNeoX", {**_PYTHIA, "num_attention_heads": 8}, 0),
    "Qwen/Qwen3-0.6B": (
        "Qwen3",
        {**_QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
        0,
    ),
    "Qwen/Qwen3-4B": (
        "Qwen3",
        {**_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
        0,
    ),
    "meta-llama/Llama-3.2-3B-Instruct": ("Llama", _LLAMA_3B, 1),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ("Qwen2", _DEEPSEEK, 1),
    "google/gemma-2-2b-it": ("Gemma2", _GEMMA, 1),
}


def is_padded_ahead(name: str) -> bool:
    """Say whether the runs padded every line of this model's data to the longest length."""
    return name.startswith(_PADDED_AHEAD)


def tokens_added(name: str) -> int:
    """Return how many tokens of its own the model's tokenizer adds to a line."""
    return MODELS[name][2]


def language_model(name: str, seed: int = FULL) -> Workload:
    """Return a transformer of the table, on the batches of one shuffle; `FULL` stands for lines that are all cut."""
    vocabulary = _config(name).vocab_size
    steps: list[tuple[int, ...]] = []

    def batch(batch_size: int) -> dict[str, Tensor]:
        if not steps:
            drawn = full_lengths(batch_size) if seed == FULL else draw_lengths(batch_size, tokens_added(name), seed)
            steps.extend(drawn)
        return _batch(steps.pop(0), vocabulary, LONGEST if is_padded_ahead(name) else 1)

    return Workload(model=lambda: _model(name), batch=batch, loss=_kept_output())


def _config(name: str) -> Any:
    import transformers

    architecture, options, _ = MODELS[name]
    return getattr(transformers, f"{architecture}Config")(**options)


def _model(name: str) -> nn.Module:
    import transformers

    encoder_decoder = MODELS[name][0] == "T5"
    kind = transformers.AutoModelForSeq2SeqLM if encoder_decoder else transformers.AutoModelForCausalLM
    model: nn.Module = kind.from_config(_config(name))
    return model


def _batch(lengths: tuple[int, ...], vocabulary: int, shortest: int) -> dict[str, Tensor]:
    """What `DataCollatorForLanguageModeling(mlm=False)` makes: padded at the end, labels of the same shape."""
    longest = max(*lengths, shortest) if len(lengths) > 1 else max(lengths[0], shortest)
    ids = torch.randint(0, vocabulary, (len(lengths), longest))
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": mask.to(torch.int64), "labels": ids.clone()}


def _kept_output() -> Callable[[nn.Module, Any], Tensor]:
    kept: list[Any] = [None]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        kept[0] = model(**batch)
        value: Tensor = kept[0].loss
        return value

    return loss
