"""Every built-in workload at a size that trains in a moment. A new built-in is here as soon as it is in the table."""

from __future__ import annotations

from memprof.documents.workload_spec import KnobValue
from memprof.workloads.builtin import BUILTINS

_SIZES: dict[str, KnobValue] = {
    "n_layers": 2,
    "n_blocks": 1,
    "d_model": 64,
    "d_ff": 128,
    "n_heads": 4,
    "n_kv_heads": 2,
    "seq_len": 32,
    "vocab_size": 512,
    "image_size": 32,
    "n_classes": 10,
}
_OTHERWISE: dict[str, dict[str, KnobValue]] = {"transformer-big": {"seq_len": 16}}
_SMALL_ALREADY = ("mlp",)


def _small(name: str) -> dict[str, KnobValue]:
    if name in _SMALL_ALREADY:
        return {}
    knobs = {knob: value for knob, value in _SIZES.items() if knob in BUILTINS[name].knobs}
    return {**knobs, **_OTHERWISE.get(name, {})}


SMALL = {name: _small(name) for name in BUILTINS}
"""The knobs that make each built-in small, by its name."""
