"""The published shapes of Llama: 7b and 13b are Llama 2, 8b and 70b are Llama 3, and 1b and 3b are Llama 3.2."""

from __future__ import annotations

from memprof.documents.workload_spec import KnobValue


def _shape(
    n_layers: int, d_model: int, n_heads: int, n_kv_heads: int, d_ff: int, vocab_size: int, tied: bool
) -> dict[str, KnobValue]:
    return {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_ff": d_ff,
        "vocab_size": vocab_size,
        "tie_embeddings": tied,
    }


LLAMA_SIZES: dict[str, dict[str, KnobValue]] = {
    "1b": _shape(16, 2048, 32, 8, 8192, 128_256, True),
    "3b": _shape(28, 3072, 24, 8, 8192, 128_256, True),
    "7b": _shape(32, 4096, 32, 32, 11_008, 32_000, False),
    "8b": _shape(32, 4096, 32, 8, 14_336, 128_256, False),
    "13b": _shape(40, 5120, 40, 40, 13_824, 32_000, False),
    "70b": _shape(80, 8192, 64, 8, 28_672, 128_256, False),
}

# The parameter counts of these shapes, from the safetensors of meta-llama/Llama-3.2-1B, Llama-3.2-3B, Llama-2-7b,
# Meta-Llama-3-8B, Llama-2-13b and Meta-Llama-3-70B.
LLAMA_PARAMETERS: dict[str, int] = {
    "1b": 1_235_814_400,
    "3b": 3_212_749_824,
    "7b": 6_738_415_616,
    "8b": 8_030_261_248,
    "13b": 13_015_864_320,
    "70b": 70_553_706_496,
}
