"""Describes the built-in workloads without importing torch; `Builtin.factory` imports the one in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from memprof.documents.workload_spec import KnobValue
from memprof.errors import UsageError, did_you_mean
from memprof.workloads.builtin.llama_sizes import LLAMA_PARAMETERS, LLAMA_SIZES

if TYPE_CHECKING:
    from memprof.workloads.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Builtin:
    """One built-in workload.

    Attributes:
        name: The name that the user gives.
        description: A description in one line, which is also the first line of the factory's docstring.
        parameters: The published number of parameters, which the default knobs give.
        scale: The knob that "the largest model" varies.
        knobs: All knobs with their defaults.
        path: The import path of the factory, `package.module:attr`.
        presets: For each value of the knob `size`, the knobs that it sets; empty if there is no such knob.
    """

    name: str
    description: str
    parameters: int
    scale: str
    knobs: Mapping[str, KnobValue]
    path: str
    presets: Mapping[str, Mapping[str, KnobValue]] = field(default_factory=dict)

    @property
    def factory(self) -> Callable[..., Workload]:
        """The function that takes the knobs and returns the workload; importing it imports torch."""
        module, attr = self.path.split(":")
        factory: Callable[..., Workload] = getattr(import_module(module), attr)
        return factory

    def knobs_for(self, given: Mapping[str, KnobValue]) -> dict[str, KnobValue]:
        """Return the default of every knob, where a given `size` sets some of them.

        Raises:
            UsageError: There is no such size.
        """
        size = given.get("size")
        if size is None or not self.presets:
            return dict(self.knobs)
        if size not in self.presets:
            raise UsageError(f"{self.name} has no size {size!r}{did_you_mean(str(size), list(self.presets))}")
        return {**self.knobs, **self.presets[str(size)]}


_HOME = "memprof.workloads.builtin"


def _transformer(n_layers: int, d_model: int, n_heads: int, **others: KnobValue) -> dict[str, KnobValue]:
    return {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, **others}


BUILTINS: dict[str, Builtin] = {
    builtin.name: builtin
    for builtin in (
        Builtin(
            name="mlp",
            description="Multilayer perceptron with ReLU, on MNIST-sized input.",
            parameters=1_195_018,
            scale="n_layers",
            knobs={"n_layers": 4, "d_model": 512, "n_inputs": 784, "n_classes": 10},
            path=f"{_HOME}.mlp:mlp",
        ),
        Builtin(
            name="gpt2",
            description="GPT-2 language model.",
            parameters=124_439_808,
            scale="n_layers",
            knobs=_transformer(12, 768, 12, seq_len=1024, vocab_size=50257, dropout=0.1),
            path=f"{_HOME}.gpt2:gpt2",
        ),
        Builtin(
            name="bert-large",
            description="BERT-Large with its pre-training heads (masked tokens, next sentence).",
            parameters=336_226_108,
            scale="n_layers",
            knobs=_transformer(24, 1024, 16, d_ff=4096, seq_len=512, vocab_size=30522, dropout=0.1),
            path=f"{_HOME}.bert:bert_large",
        ),
        Builtin(
            name="transformer-big",
            description="Transformer-Big translation model of the SM3 paper.",
            parameters=375_377_920,
            scale="n_layers",
            knobs=_transformer(6, 1024, 16, d_ff=8192, seq_len=256, vocab_size=32000, dropout=0.1),
            path=f"{_HOME}.transformer:transformer_big",
        ),
        Builtin(
            name="resnet50",
            description="ResNet-50 image classifier.",
            parameters=25_557_032,
            scale="n_blocks",
            knobs={"n_blocks": 6, "image_size": 224, "n_classes": 1000},
            path=f"{_HOME}.resnet50:resnet50",
        ),
        Builtin(
            name="vit-b16",
            description="Vision Transformer B/16 image classifier.",
            parameters=86_567_656,
            scale="n_layers",
            knobs=_transformer(12, 768, 12, d_ff=3072, image_size=224, patch_size=16, n_classes=1000),
            path=f"{_HOME}.vit:vit_b16",
        ),
        Builtin(
            name="llama",
            description="Llama language model, 1B to 70B.",
            parameters=LLAMA_PARAMETERS["1b"],
            scale="n_layers",
            knobs={"size": "1b", "seq_len": 2048, **LLAMA_SIZES["1b"]},
            path=f"{_HOME}.llama:llama",
            presets=LLAMA_SIZES,
        ),
    )
}
