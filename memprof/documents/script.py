"""A training script as a user runs it: the program, its arguments, and the optimizer that replaces its own."""

from __future__ import annotations

import re
import shlex

from pydantic import BaseModel, ConfigDict, Field

from memprof.documents.confidence import Document
from memprof.documents.optimizer_spec import OptimizerSpec, parse_optimizer
from memprof.documents.vary import Vary
from memprof.errors import UsageError, did_you_mean

AS_IS = "as-is"
_PLACED = re.compile(r"([^,@]+)@([A-Za-z_][\w.]*|\d+)(,.*)?", re.DOTALL)
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


class ScriptSpec(BaseModel):
    """A program to run as `__main__`.

    Attributes:
        path: The path of the file; None for a module.
        module: The module that `python -m` would run; None for a file.
        arguments: The arguments of the program on the command line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = None
    module: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The program as a user writes it: `train.py`, or `-m package.train`."""
        return self.path if self.path is not None else f"-m {self.module}"

    @property
    def placeholders(self) -> list[str]:
        """The names that stand in braces in the arguments, each once: `--batch_size={batch}` has `batch`."""
        return list(dict.fromkeys(name for argument in self.arguments for name in _PLACEHOLDER.findall(argument)))

    def with_value(self, name: str, value: int) -> ScriptSpec:
        """Return the program with each `{name}` in its arguments replaced by a value.

        Args:
            name: The name of the placeholder.
            value: The value.
        """
        filled = tuple(argument.replace(f"{{{name}}}", str(value)) for argument in self.arguments)
        return self.model_copy(update={"arguments": filled})


def parse_script(text: str) -> ScriptSpec:
    """Return the program that a command line names: `train.py --batch_size=12`, or `-m package.train --steps=9`.

    Args:
        text: The command line.

    Raises:
        UsageError: The text names no program, or a quotation mark is not closed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no command line: {str(error).lower()}") from None
    if words[:1] == ["-m"]:
        if len(words) < 2:
            raise UsageError(f"{text!r} names no module; write for example -m package.train --batch_size=12")
        return ScriptSpec(module=words[1], arguments=tuple(words[2:]))
    if not words:
        raise UsageError("it names no script; write for example train.py --batch_size=12")
    return ScriptSpec(path=words[0], arguments=tuple(words[1:]))


def check_placeholders(script: ScriptSpec, vary: Vary) -> None:
    """Check that the arguments of a script have the placeholder of `--vary` and no other.

    Args:
        script: The program with its arguments.
        vary: The placeholder and its range.

    Raises:
        UsageError: The placeholder is missing, its braces are doubled, or there is another placeholder.
    """
    doubled = next((argument for argument in script.arguments if "{{" in argument), None)
    if doubled is not None:
        raise UsageError(f"the argument {doubled!r} doubles its braces; with --vary write {{{vary.knob}}}, once")
    names = script.placeholders
    if vary.knob not in names:
        hint = did_you_mean(vary.knob, names) if names else ""
        raise UsageError(
            f"--vary {vary.knob}: no argument of {script.name} has the placeholder {{{vary.knob}}}"
            + (hint or f"; write for example --batch_size={{{vary.knob}}}")
        )
    other = next((name for name in names if name != vary.knob), None)
    if other is not None:
        raise UsageError(
            f"the placeholder {{{other}}} has no --vary: one value is searched at a time, so give {other} a number"
        )


class ScriptInfo(Document):
    """The script that was run.

    Attributes:
        program: The file or `-m MODULE`, as it was given.
        arguments: The arguments of the script.
        steps: The number of training steps to run; null if the script ran until two steps in a row allocated alike.
        world_size: The number of ranks on which the script was started, as by torchrun; null if it ran without ranks.
        rank: The rank that was asked for; null for the first rank of a prediction, or the measured rank with the
            highest peak.
        knobs: For each `{placeholder}` in the arguments the value to which the figures of the runs belong; empty if no
            value fits.
    """

    program: str
    arguments: tuple[str, ...] = ()
    steps: int | None = None
    world_size: int | None = None
    rank: int | None = None
    knobs: dict[str, int] = Field(default_factory=dict)

    @property
    def command(self) -> str:
        """The program with its arguments."""
        return " ".join([self.program, *map(shlex.quote, self.arguments)])


class Substitution(BaseModel):
    """The optimizer that replaces the script's own.

    Attributes:
        spec: The optimizer. Its text is what the user wrote, with the place. `as-is` keeps the script's optimizers.
        place: The only optimizer that is replaced: its number in the order of construction, from 0, or the variable to
            which the script assigns it; None to replace all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: OptimizerSpec
    place: int | str | None = None

    @property
    def is_as_is(self) -> bool:
        """Whether the script keeps its own optimizers."""
        return self.spec.name == AS_IS


def parse_substitution(text: str) -> Substitution:
    """Return what `-o` means for a script.

    Args:
        text: `as-is`, an optimizer spec, or `NAME@PLACE`, with options after it.

    Raises:
        UsageError: The text is no optimizer spec, or `as-is` comes with options or a place.
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
