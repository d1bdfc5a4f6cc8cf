"""Options that several commands have."""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprof.errors import UsageError

if TYPE_CHECKING:
    from memprof.documents.recipe import Recipe


_asked = {"debug": False}


def debug_asked() -> bool:
    """Whether `--debug` was given: errors then come with their traceback."""
    return _asked["debug"]


def _remember_debug(value: bool) -> bool:
    _asked["debug"] = _asked["debug"] or value
    if value:
        os.environ["MEMPROF_DEBUG"] = "1"  # workers print their tracebacks too
    return value


DebugOption = Annotated[
    bool, typer.Option("--debug", callback=_remember_debug, help="Show tracebacks instead of one sentence.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]


MODEL, OPTIMIZERS, RECIPE, OUTPUT = "Model", "Optimizers", "Training recipe", "Output"


class Precision(str, Enum):
    """`Recipe.precision`, spelled again because importing the recipe would slow `--help` down."""

    FP32 = "fp32"
    BF16 = "bf16"
    AMP_BF16 = "amp-bf16"
    AMP_FP16 = "amp-fp16"


class ZeroGrad(str, Enum):
    """`Recipe.zero_grad`."""

    START = "start"
    BEFORE_BACKWARD = "before-backward"
    AFTER_STEP = "after-step"


class Strategy(str, Enum):
    """`Recipe.strategy`."""

    SINGLE = "single"
    DDP = "ddp"
    FSDP = "fsdp"


def option(*names: str, panel: str, text: str, metavar: str | None = None) -> Any:
    """Return an option of a help panel."""
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A built-in (see memprof models), path/to/file.py:attr, package.module:attr or hf:PATH.",
    ),
]
BatchSizeOption = Annotated[int, option("-b", "--batch-size", panel=MODEL, text="Samples per micro-batch.")]
KnobsOption = Annotated[
    list[str] | None, option("--set", panel=MODEL, text="Set a knob of the model; repeatable.", metavar="KEY=VALUE")
]
InputsOption = Annotated[
    list[str] | None,
    option(
        "--input",
        panel=MODEL,
        text="An input of a plain module, e.g. float32[B,3,224,224]; repeatable.",
        metavar="SPEC",
    ),
]
TargetOption = Annotated[
    str | None, option("--target", panel=MODEL, text="What its loss compares with, e.g. int64[B]<1000.", metavar="SPEC")
]
OptimizersOption = Annotated[
    list[str] | None,
    option(
        "-o",
        "--optimizer",
        panel=OPTIMIZERS,
        text="NAME or import path, then ,key=value options; repeatable. "
        "Default: sm3; sm3,momentum=0.9; adam; adagrad; adafactor; sgd.",
        metavar="SPEC",
    ),
]
PrecisionOption = Annotated[
    Precision, option("--precision", panel=RECIPE, text="fp32, bf16, amp-bf16 or amp-fp16.", metavar="NAME")
]
AccumulateOption = Annotated[int, option("--accumulate", panel=RECIPE, text="Micro-batches per optimizer step.")]
CheckpointOption = Annotated[
    bool,
    option("--checkpoint-activations", panel=RECIPE, text="Recompute the model's blocks in the backward pass."),
]
ClipOption = Annotated[
    float | None, option("--clip-grad", panel=RECIPE, text="Clip the total gradient norm.", metavar="NORM")
]
ZeroGradOption = Annotated[
    ZeroGrad, option("--zero-grad", panel=RECIPE, text="start, before-backward or after-step.", metavar="WHEN")
]
InBackwardOption = Annotated[
    bool, option("--step-in-backward", panel=RECIPE, text="Step each parameter as its gradient is complete.")
]
StrategyOption = Annotated[
    Strategy, option("--strategy", panel=RECIPE, text="How ranks share it: single, ddp or fsdp.", metavar="NAME")
]
WorldSizeOption = Annotated[int, option("--world-size", panel=RECIPE, text="Ranks, each with its own batch.")]
SeedOption = Annotated[int, option("--seed", panel=RECIPE, text="Of the weights and the batches.")]
ExportJsonOption = Annotated[str | None, option("--export-json", panel=OUTPUT, text="Save the result.", metavar="FILE")]
ExportMarkdownOption = Annotated[
    str | None, option("--export-markdown", panel=OUTPUT, text="Save the report; - is stdout.", metavar="FILE")
]
ForceOption = Annotated[bool, option("--force", panel=OUTPUT, text="Overwrite exports that exist.")]


def make_recipe(**values: Any) -> Recipe:
    """Return the recipe of the options.

    Raises:
        UsageError: a value is out of its range.
    """
    from pydantic import ValidationError

    from memprof.documents.recipe import Recipe

    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # values that do not go together
            raise UsageError(first["msg"].removeprefix("Value error, ")) from None
        flag = str(first["loc"][0]).replace("_", "-")
        wanted = first["msg"].removeprefix("Input ")
        raise UsageError(f"--{flag} {first['input']}: the value {wanted}") from None
