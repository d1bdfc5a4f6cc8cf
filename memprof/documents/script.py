"""A training script as somebody runs it: which program, with which arguments, and which optimizer in its place."""

from __future__ import annotations

import re
import shlex

from pydantic import BaseModel, ConfigDict

from memprof.documents.confidence import Document
from memprof.documents.optimizer_spec import OptimizerSpec, parse_optimizer
from memprof.errors import UsageError

AS_IS = "as-is"
_PLACED = re.compile(r"([^,@]+)@([A-Za-z_][\w.]*|\d+)(,.*)?", re.DOTALL)


class ScriptSpec(BaseModel):
    """A program to run as `__main__`.

    Attributes:
        path: of the file; None for a module.
        module: what `python -m` would run; None for a file.
        arguments: what follows it on the command line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = None
    module: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The program as a reader knows it: `train.py`, or `-m package.train`."""
        return self.path if self.path is not None else f"-m {self.module}"

    @property
    def command(self) -> str:
        """The program with its arguments, as one would type it."""
        program = [self.path] if self.path is not None else ["-m", self.module or ""]
        return shlex.join([*program, *self.arguments])


class ScriptInfo(Document):
    """What was run.

    Attributes:
        program: the file or `-m MODULE`, as it was given.
        arguments: the script's own.
        steps: training steps to run; null for as many as it takes until two in a row allocate alike.
        world_size: ranks that it was started on, as by torchrun; null where it was run as it is.
        rank: the one that was asked for; null for the first of a prediction, and the one with the highest peak of those
            measured.
    """

    program: str
    arguments: tuple[str, ...] = ()
    steps: int | None = None
    world_size: int | None = None
    rank: int | None = None

    @property
    def command(self) -> str:
        """The program with its arguments."""
        return " ".join([self.program, *map(shlex.quote, self.arguments)])


class Substitution(BaseModel):
    """Which optimizer takes the place of the script's own.

    Attributes:
        spec: the optimizer; its text is what the user wrote, with the place. `as-is` leaves every one as it is.
        place: the only one that is replaced: its number in the order of construction, from 0, or the variable that the
            script assigns it to; None for all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: OptimizerSpec
    place: int | str | None = None

    @property
    def is_as_is(self) -> bool:
        """Whether the script keeps its own."""
        return self.spec.name == AS_IS


def parse_substitution(text: str) -> Substitution:
    """Return what `-o` means for a script: `as-is`, a spec, or `NAME@PLACE` with options behind.

    Raises:
        UsageError: the text is no optimizer spec, or `as-is` comes with options or a place.
    """
    placed = _PLACED.fullmatch(text.strip())
    if placed is None:
        spec = parse_optimizer(text)
        if spec.name == AS_IS and spec.options:
            raise UsageError(f"{text!r}: as-is leaves the script's optimizer alone and takes no options")
        return Substitution(spec=spec)
    name, place, options = placed[1], placed[2], placed[3] or ""
    spec = parse_optimizer(name + options)
    if spec.name == AS_IS:
        raise UsageError(f"{text!r}: as-is leaves every optimizer alone and takes no place")
    head, comma, tail = spec.text.partition(",")
    shown = spec.model_copy(update={"text": f"{head}@{place}{comma}{tail}"})
    return Substitution(spec=shown, place=int(place) if place.isdigit() else place)
