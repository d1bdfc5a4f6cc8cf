"""What a fake training answers when the code asks for a value that depends on fake data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from memprof.errors import UsageError

# Between forward and backward a value decides what is computed, so a wrong one would be a wrong prediction.
_STRICT = ("batch", "forward", "backward")
# Exceptions of torch/_subclasses/fake_tensor.py, which is slow to import.
_DEPENDS_ON_DATA = ("DataDependentOutputException", "DynamicOutputShapeException")
_HAS_NO_KERNEL = ("UnsupportedOperatorException", "NotImplementedError")


class Reads:
    """Answers reads of unknown values: assumed in optimizers and initialisers, refused in the model.

    Optimizers read norms and step counts to scale an update, which moves no memory; initialisers read what they have
    just drawn. Numbers are assumed to be 1, conditions to hold.

    Attributes:
        assumed: the operators whose answer was assumed, with the phase.
    """

    def __init__(self) -> None:
        self.assumed: set[tuple[str, str]] = set()

    def value(self, dtype: torch.dtype, operator: str, module: str, phase: str) -> bool | int | float | complex:
        """Return a value for a tensor of one element.

        Raises:
            UsageError: in the model's forward or backward pass, where the answer would decide what is computed.
        """
        if phase in _STRICT:
            raise UsageError(_sentence(f"reads a value that depends on the data ({operator})", module))
        self.assumed.add((operator, phase))
        return True if dtype is torch.bool else 1 if not dtype.is_floating_point else 1.0

    @contextmanager
    def explained(self, operator: str, module: str) -> Iterator[None]:
        """Say in one sentence why an operator cannot be predicted.

        Raises:
            UsageError: its output depends on values, or it has no fake kernel.
        """
        try:
            yield
        except Exception as error:
            if type(error).__name__ in _HAS_NO_KERNEL:
                what = f"runs {operator}, which has no fake kernel (torch.library.register_fake gives it one)"
            elif type(error).__name__ in _DEPENDS_ON_DATA:
                what = f"runs {operator}, whose output depends on the data"
            else:
                raise
            raise UsageError(_sentence(what, module)) from error


def _sentence(what: str, module: str) -> str:
    where = f"module {module!r}" if module else "the training step"
    return f"{where} {what}, so its memory cannot be predicted: measure it with --device cpu or cuda"
