"""What a fake training answers when the code asks for a value that depends on fake data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from memprof.errors import UsageError

# Between forward and backward a value decides what is computed, so a wrong one would be a wrong prediction.
_STRICT = ("batch", "forward", "backward")
_MOST_READS = 100_000  # Adafactor reads three for each parameter and step
# Exceptions of torch/_subclasses/fake_tensor.py, which is slow to import.
_DEPENDS_ON_DATA = ("DataDependentOutputException", "DynamicOutputShapeException")
_HAS_NO_KERNEL = ("UnsupportedOperatorException", "NotImplementedError")


class Reads:
    """Answers reads of unknown values: assumed in optimizers and initialisers, refused in the model.

    Optimizers read norms and step counts to scale an update, which moves no memory: numbers are assumed to be 1,
    conditions to hold. Initialisers ask whether anything has to be drawn again (`trunc_normal_`): it does not.

    Attributes:
        assumed: the operators whose answer was assumed, with the phase.
        guesses: sentences about what was predicted as something else than it is.
    """

    def __init__(self) -> None:
        self.assumed: set[tuple[str, str]] = set()
        self.guesses: set[str] = set()
        self._count = 0

    def value(self, dtype: torch.dtype, operator: str, module: str, phase: str) -> bool | int | float | complex:
        """Return a value for a tensor of one element.

        Raises:
            UsageError: in the model's forward or backward pass, where the answer would decide what is computed; or
                the code seems to go on until it likes the answer.
        """
        self._count += 1
        if phase in _STRICT or self._count > _MOST_READS:
            raise UsageError(_sentence(f"reads a value that depends on the data ({operator})", module))
        self.assumed.add((operator, phase))
        if dtype is torch.bool:
            return phase != "build"
        return 1.0 if dtype.is_floating_point else 1

    def guess(self, module: str, what: str) -> None:
        """Note that a module, "" for the training step, `what`."""
        place = _place(module)
        self.guesses.add(f"{place[0].upper()}{place[1:]} {what}.")

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
    return f"{_place(module)} {what}, so its memory cannot be predicted: measure it with --device cpu or cuda"


def _place(module: str) -> str:
    return f"module {module!r}" if module else "the training step"
