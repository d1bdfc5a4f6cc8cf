"""Names of phases, categories and sources for use in sentences; `memprof.units` does the same for numbers."""

from __future__ import annotations

from memprof.documents.comparison import Environment

_PHASES = {
    "build": "building the model",
    "batch": "making the batch",
    "forward": "the forward pass",
    "backward": "the backward pass",
    "clip": "gradient clipping",
    "optimizer": "the optimizer step",
    "zero_grad": "zeroing the gradients",
    "evaluation": "evaluation",
    "save": "saving",
    "load": "loading",
    "other": "what the script does between its phases",
}


def category_title(category: str) -> str:
    """Return the name of a category as it is shown in headings: `optimizer_state` becomes `optimizer state`."""
    return category.replace("_", " ")


def phase_words(phase: str) -> str:
    """Return the name of a phase as it is used in a sentence: `backward` becomes `the backward pass`."""
    return _PHASES.get(phase, phase.replace("_", " "))


def made_where(source: str, device: str) -> str:
    """Return how figures were made, for example `measured on cpu` or `predicted for rtx-4090`.

    Args:
        source: `measured` or `predicted`.
        device: The name of the device.
    """
    return f"{source} {'on' if source == 'measured' else 'for'} {device}"


def processor_words(environment: Environment) -> str:
    """Return what decides which kernels run on a CPU: `AMD EPYC with AVX2, 2 cores, 2 threads`."""
    instructions = f" with {environment.instruction_set}" if environment.instruction_set else ""
    return f"{environment.processor}{instructions}, {environment.cores} cores, {environment.threads} threads"
