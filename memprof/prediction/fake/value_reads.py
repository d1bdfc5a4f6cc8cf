"""What a fake training answers when the code asks for a value that depends on fake data.

A value that only leaves to Python (a logged loss, a metric, a NaN guard) changes no memory, so nothing is refused: a
number is 1, those that are read one after the other each a little less, as a loss that falls; of a condition the answer
is the one that keeps the training going. Each place is noted once, and where the program branches there the note says
so.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from memprof.errors import UsageError
from memprof.scripts.places import caller, decides, place_of

Value = bool | int | float | complex

# Reads here scale an update or ask whether to draw again; they are named by their operators, not by their places.
_INSIDE = ("build", "clip", "optimizer")
_FALL = 2.0**-20
_MOST_READS = 100_000  # Adafactor reads three for each parameter and step
# Exceptions of torch/_subclasses/fake_tensor.py, which is slow to import.
_DEPENDS_ON_DATA = ("DataDependentOutputException", "DynamicOutputShapeException")
_OF_CUSTOM_OP = "no fake impl registered for <CustomOpDef"  # a RuntimeError of `torch.library.custom_op`
_HAS_NO_KERNEL = ("UnsupportedOperatorException", "NotImplementedError")


class Reads:
    """Answers reads of unknown values.

    Optimizers read norms and step counts to scale an update, which moves no memory: numbers are assumed to be 1,
    conditions to hold. Initialisers ask whether anything has to be drawn again (`trunc_normal_`): it does not. Anywhere
    else a condition is taken to be false, unless it follows from numbers that are 1.

    Args:
        answers: what the user says of places, `train.py:12`, in place of these.

    Attributes:
        assumed: the operators whose answer was assumed, with the phase.
        guesses: sentences about what was predicted as something else than it is.
        unused: places for which there is an answer and that have not asked.
    """

    def __init__(self, answers: Mapping[str, Value] | None = None) -> None:
        self.assumed: set[tuple[str, str]] = set()
        self.guesses: set[str] = set()
        self.unused = set(answers or ())
        self._answers = dict(answers or {})
        self._counts: Counter[str] = Counter()
        self._last_float = 1.0 + _FALL

    def value(
        self, dtype: torch.dtype, operator: str, module: str, phase: str, expected: bool | int | None = None
    ) -> Value:
        """Return a value for a tensor of one element.

        Args:
            dtype: of the tensor.
            operator: that reads it.
            module: that runs, "" outside the model.
            phase: of the training step.
            expected: what follows from the numbers that it was computed from, if anything does.

        Raises:
            UsageError: the code seems to go on until it likes the answer.
        """
        default = _default(dtype, phase, expected)
        if phase in _INSIDE and not self._answers:
            self.assumed.add((operator, phase))
            self._count("", module)
            return default
        frame = caller(sys._getframe(1))
        place = place_of(frame)
        self._count(place, module)
        answer = self._answer(place)
        if answer is not None:
            return bool(answer) if dtype is torch.bool else answer
        if phase in _INSIDE:
            self.assumed.add((operator, phase))
        else:
            if isinstance(default, float) and expected is None:
                default = self._falling()
            branches = frame is not None and decides(frame.f_code.co_filename, frame.f_lineno)
            self.guesses.add(_note(place or _place(module), _default(dtype, phase, expected), branches))
        return default

    def _falling(self) -> float:
        """Return a little less than the last time, as a loss that falls: what is done for the best so far is done."""
        self._last_float = max(0.5, self._last_float - _FALL)
        return self._last_float

    def _count(self, place: str, module: str) -> None:
        self._counts[place] += 1
        if self._counts[place] > _MOST_READS:
            where = f"{place} reads" if place else f"{_place(module)} reads"
            hint = f"say what it is with --assume {place}=VALUE" if place else "measure it with --device cpu or cuda"
            raise UsageError(f"{where} values that depend on the data again and again, so it may never end: {hint}")

    def _answer(self, place: str) -> Value | None:
        for name, value in self._answers.items():
            if place == name or place.endswith(f"/{name}"):
                self.unused.discard(name)
                return value
        return None

    def guess(self, module: str, what: str) -> None:
        """Note that a module, "" for the training step, `what`."""
        place = _place(module)
        self.guesses.add(f"{place[0].upper()}{place[1:]} {what}.")

    def guess_here(self, module: str, what: str) -> None:
        """Note that the line of the user's code that runs `what`."""
        place = place_of(caller(sys._getframe(1))) or _place(module)
        self.guesses.add(f"{place} {what}.")

    @contextmanager
    def explained(self, operator: str, module: str) -> Iterator[None]:
        """Say in one sentence why an operator cannot be predicted.

        Raises:
            UsageError: its output depends on values, or it has no fake kernel.
        """
        try:
            yield
        except Exception as error:
            if type(error).__name__ in _HAS_NO_KERNEL or _OF_CUSTOM_OP in str(error):
                what = f"runs {operator}, which has no fake kernel (torch.library.register_fake gives it one)"
            elif type(error).__name__ in _DEPENDS_ON_DATA:
                what = f"runs {operator}, whose output depends on the data"
            else:
                raise
            raise UsageError(_sentence(what, module)) from error


def _default(dtype: torch.dtype, phase: str, expected: bool | int | None) -> Value:
    if expected is not None:
        return bool(expected) if dtype is torch.bool else type(_one(dtype))(expected)
    return phase in ("clip", "optimizer") if dtype is torch.bool else _one(dtype)


def _one(dtype: torch.dtype) -> int | float:
    return 1.0 if dtype.is_floating_point else 1


def _note(place: str, value: Value, branches: bool) -> str:
    if branches:
        return (
            f"{place} branches on a value that depends on the data: it was taken to be {value} "
            f"(--assume {place}=VALUE sets another)."
        )
    return f"{place} reads a value that depends on the data: it was taken to be {value}."


def _sentence(what: str, module: str) -> str:
    return f"{_place(module)} {what}, so its memory cannot be predicted: measure it with --device cpu or cuda"


def _place(module: str) -> str:
    return f"module {module!r}" if module else "the training step"
