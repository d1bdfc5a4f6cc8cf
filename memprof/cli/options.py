"""The options that several commands share, and the recipe's options."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from memprof.errors import UsageError

if TYPE_CHECKING:
    from memprof.documents.recipe import Recipe


_asked = {"debug": False}


def debug_asked() -> bool:
    """Return whether `--debug` was given, so that errors are shown with their traceback."""
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
    """The values of `Recipe.precision`, repeated here because importing the recipe would slow `--help` down."""

    FP32 = "fp32"
    BF16 = "bf16"
    AMP_BF16 = "amp-bf16"
    AMP_FP16 = "amp-fp16"


class ZeroGrad(str, Enum):
    """The values of `Recipe.zero_grad`, repeated for the same reason."""

    START = "start"
    BEFORE_BACKWARD = "before-backward"
    AFTER_STEP = "after-step"


class Strategy(str, Enum):
    """The values of `Recipe.strategy`, repeated for the same reason."""

    SINGLE = "single"
    DDP = "ddp"
    FSDP = "fsdp"


def option(*names: str, panel: str, text: str, metavar: str | None = None) -> Any:
    """Return a Typer option that is shown in a panel of the help.

    Args:
        names: The spellings of the option, as in `-b`, `--batch-size`.
        panel: The title of the panel.
        text: The help text, which is a sentence.
        metavar: The placeholder for the value; Typer derives one from the type if it is None.
    """
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The model to train: a built-in (see memprof models), path/to/file.py:attr, package.module:attr or "
        "hf:PATH.",
    ),
]
BatchSizeOption = Annotated[
    int, option("-b", "--batch-size", panel=MODEL, text="The number of samples in a micro-batch.")
]
KnobsOption = Annotated[
    list[str] | None, option("--set", panel=MODEL, text="Set a knob of the model. Repeatable.", metavar="KEY=VALUE")
]
InputsOption = Annotated[
    list[str] | None,
    option(
        "--input",
        panel=MODEL,
        text="Describe an input of a plain module, e.g. float32[B,3,224,224]. Repeatable.",
        metavar="SPEC",
    ),
]
TargetOption = Annotated[
    str | None,
    option(
        "--target",
        panel=MODEL,
        text="Describe the target that the loss of a plain module takes, e.g. int64[B]<1000.",
        metavar="SPEC",
    ),
]
OptimizersOption = Annotated[
    list[str] | None,
    option(
        "-o",
        "--optimizer",
        panel=OPTIMIZERS,
        text="Train with this optimizer: its name or import path, then options as ,key=value. Repeatable. "
        "Default: sm3; sm3,momentum=0.9; adam; adagrad; adafactor; sgd.",
        metavar="SPEC",
    ),
]
# The fields of `Recipe` as options, in the order of the help. A new field is added here, in the recipe, and where it
# acts. The defaults are repeated because importing the recipe would slow `--help` down; a test compares the two.
RECIPE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "precision": (
        Annotated[
            Precision,
            option(
                "--precision",
                panel=RECIPE,
                text="Train in this precision: fp32, bf16, amp-bf16 or amp-fp16.",
                metavar="NAME",
            ),
        ],
        Precision.FP32,
    ),
    "accumulate": (
        Annotated[int, option("--accumulate", panel=RECIPE, text="The number of micro-batches in an optimizer step.")],
        1,
    ),
    "checkpoint_activations": (
        Annotated[
            bool,
            option(
                "--checkpoint-activations",
                panel=RECIPE,
                text="Recompute the model's repeated blocks in the backward pass.",
            ),
        ],
        False,
    ),
    "clip_grad": (
        Annotated[
            float | None,
            option("--clip-grad", panel=RECIPE, text="Clip the gradients to this total norm.", metavar="NORM"),
        ],
        None,
    ),
    "zero_grad": (
        Annotated[
            ZeroGrad,
            option(
                "--zero-grad",
                panel=RECIPE,
                text="Drop the gradients at this time: start, before-backward or after-step.",
                metavar="WHEN",
            ),
        ],
        ZeroGrad.AFTER_STEP,
    ),
    "step_in_backward": (
        Annotated[
            bool,
            option("--step-in-backward", panel=RECIPE, text="Step each parameter as soon as its gradient is complete."),
        ],
        False,
    ),
    "strategy": (
        Annotated[
            Strategy,
            option(
                "--strategy",
                panel=RECIPE,
                text="Share the training among ranks in this way: single, ddp or fsdp.",
                metavar="NAME",
            ),
        ],
        Strategy.SINGLE,
    ),
    "world_size": (
        Annotated[int, option("--world-size", panel=RECIPE, text="The number of ranks. Each has its own batch.")],
        1,
    ),
    "warmup": (
        Annotated[int, option("--warmup", panel=RECIPE, text="The number of steps before those that count.")],
        1,
    ),
    "steps": (
        Annotated[int, option("--steps", panel=RECIPE, text="The number of steps that count, at least 2.")],
        3,
    ),
    "seed": (
        Annotated[int, option("--seed", panel=RECIPE, text="The seed of the weights and the batches.")],
        0,
    ),
}
# These fields say how many steps to measure, which only a comparison does.
MEASURED = ("warmup", "steps")


def takes_recipe(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the recipe's options in place of its parameter `recipe`, which then holds their values.

    Args:
        without: The fields that are no option of this command. They keep the recipe's defaults.

    Returns:
        A decorator for a Typer command, which passes its `recipe` on to `make_recipe`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = {name: one for name, one in RECIPE_OPTIONS.items() if name not in without}
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command).parameters.items():
            if name == "recipe":
                parameters += [parameter.replace(name=key, default=default) for key, (_, default) in fields.items()]
            else:
                parameters.append(parameter)

        @wraps(command)
        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in fields}
            command(**given, recipe={name: getattr(value, "value", value) for name, value in values.items()})

        types = {**hints, **{name: annotation for name, (annotation, _) in fields.items()}}
        run.__annotations__ = {one.name: types[one.name] for one in parameters}
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [one.replace(annotation=types[one.name]) for one in parameters]
        )
        return run

    return decorate


ExportJsonOption = Annotated[
    str | None, option("--export-json", panel=OUTPUT, text="Save the result as JSON.", metavar="FILE")
]
ExportMarkdownOption = Annotated[
    str | None,
    option("--export-markdown", panel=OUTPUT, text="Save the report as Markdown; - is stdout.", metavar="FILE"),
]
ForceOption = Annotated[bool, option("--force", panel=OUTPUT, text="Overwrite files that exist.")]


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a command's options describe.

    Args:
        values: The value of each option, by the name of the recipe's field.

    Raises:
        UsageError: A value is out of its range, or two values exclude each other.
    """
    from pydantic import ValidationError

    from memprof.documents.recipe import Recipe

    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # two values exclude each other
            raise UsageError(first["msg"].removeprefix("Value error, ")) from None
        flag = str(first["loc"][0]).replace("_", "-")
        wanted = first["msg"].removeprefix("Input ")
        raise UsageError(f"--{flag} {first['input']}: the value {wanted}") from None
