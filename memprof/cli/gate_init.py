"""The command `memprof gate init`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprof.cli import options as asked
from memprof.cli.gate import ConfigOption
from memprof.cli.options import DebugOption
from memprof.cli.output import tell
from memprof.errors import ExitCode, MemprofError, UsageError

if TYPE_CHECKING:
    from memprof.documents.comparison import Comparison
    from memprof.gate.config import Config
    from memprof.gate.entry_figures import Figures


@asked.takes_recipe(without=asked.MEASURED)
def init(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RESULT.json",
            help="The model to train, or a file that `memprof compare --export-json` saved.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="The name of the entry (default: the model's name).", metavar="NAME")
    ] = None,
    config: ConfigOption = None,
    batch_size: asked.BatchSizeOption = 8,
    knobs: asked.KnobsOption = None,
    inputs: asked.InputsOption = None,
    target: asked.TargetOption = None,
    optimizers: Annotated[
        list[str] | None,
        asked.option(
            "-o",
            "--optimizer",
            panel=asked.OPTIMIZERS,
            text="Train with this optimizer, given as in compare. Repeatable.",
            metavar="SPEC",
        ),
    ] = None,
    device: Annotated[
        str,
        asked.option(
            "--device",
            panel=asked.RECIPE,
            text="Train on this device: auto, cpu, cuda:N, a GPU to predict for, or a size.",
            metavar="NAME",
        ),
    ] = "auto",
    recipe: Any = None,
    debug: DebugOption = False,
) -> None:
    """Write a first configuration of budgets and its baseline, from a comparison."""
    from memprof.documents.workload_spec import parse_knobs
    from memprof.files import check_writable

    file = _target(config)
    check_writable(file, force=True)
    chosen = asked.make_recipe(recipe)
    given = parse_knobs(knobs or [])
    arguments = {
        "batch_size": batch_size,
        "knobs": given,
        "inputs": inputs or [],
        "target": target,
        "optimizers": optimizers,
        "device": device,
        "recipe": chosen,
    }
    saved = Path(source).suffix == ".json"
    comparison = _load(source) if saved else _run(source, arguments)
    _write(file, name or _name_of(comparison), comparison, None if saved else given)


def _target(config: str | None) -> Path:
    """Return the file that takes the entry: the named one, else the existing one, else a new memprof.toml."""
    from memprof.gate.config_file import OWN_FILE, find_config

    if config is not None:
        return Path(config)
    try:
        return find_config(Path.cwd()).path
    except MemprofError as error:
        if error.exit_code != ExitCode.NOTHING_TO_DO:
            raise
        return Path(OWN_FILE)


def _name_of(comparison: Comparison) -> str:
    model = comparison.subject
    tail = model.rpartition(":")[2] if not model.startswith("hf:") else Path(model[3:]).parent.name
    return re.sub(r"[^\w-]+", "-", tail).strip("-_") or "training"


def _load(source: str) -> Comparison:
    from memprof.documents.comparison import Comparison

    return Comparison.load(source)


def _run(model: str, arguments: dict[str, Any]) -> Comparison:
    from memprof.api import compare
    from memprof.cli.watch import make_watcher
    from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS

    optimizers = arguments["optimizers"] or DEFAULT_OPTIMIZERS
    with make_watcher() as watcher:
        return compare(model, fit=False, on_progress=watcher, **{**arguments, "optimizers": optimizers})


def _write(target: Path, name: str, comparison: Comparison, knobs: Mapping[str, Any] | None) -> None:
    """Write both the configuration and the baseline, or neither."""
    from memprof.files import check_writable, write_text
    from memprof.gate.baseline import empty_baseline, load_baseline, update
    from memprof.gate.init import add_entry, model_from, prefix_of, starter, trained

    figures = _finished(name, comparison)
    workload, _ = trained(comparison)
    moved = workload.model_copy(update={"model": model_from(workload.model, target.resolve().parent)})
    comparison = comparison.model_copy(update={"workload": moved})
    text, config = add_entry(target, name, starter(name, comparison, figures, prefix_of(target), knobs))
    _check(config, name)
    check_writable(config.baseline, force=True)
    figures = [one.model_copy(update={"setup": one.setup.model_copy(update={"model": moved.model})}) for one in figures]
    baseline = load_baseline(config.baseline) or empty_baseline()
    updated, _ = update(baseline, figures, [budget.name for budget in config.budgets], complete=False)
    write_text(target, text)
    write_text(config.baseline, updated.to_json())
    tell(f"wrote the budget {name!r} to {target} and its figures to {config.baseline.name}; run it with `memprof gate`")


def _check(config: Config, name: str) -> None:
    if name not in [budget.name for budget in config.budgets]:
        raise UsageError(f"the budget {name!r} did not arrive in {config.path.name}; is its last table an inline one?")


def _finished(name: str, comparison: Comparison) -> list[Figures]:
    """Return the figures of the runs that finished, and tell the user which did not."""
    from memprof.gate.entry_figures import figures_of

    made = figures_of(name, comparison)
    good = [one for one in made if one.status == "ok"]
    for one in made:
        if one.status != "ok":
            tell(f"left out: {one.optimizer}: {one.reason}")
    if not good:
        raise MemprofError(f"no optimizer finished on {comparison.subject}, so there is nothing to limit")
    return good
