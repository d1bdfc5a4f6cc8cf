"""`memprof gate init`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memprof.cli.compare import Precision, make_recipe
from memprof.cli.gate import ConfigOption
from memprof.cli.options import DebugOption
from memprof.cli.output import tell
from memprof.errors import ExitCode, MemprofError, UsageError

if TYPE_CHECKING:
    from memprof.gate.config import Config
    from memprof.gate.figures import Figures
    from memprof.results import Comparison


def init(
    source: Annotated[
        str,
        typer.Argument(metavar="MODEL|RESULT.json", help="What to run, or what `memprof compare --export-json` saved."),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Of the entry (default: the model's).", metavar="NAME")
    ] = None,
    batch_size: Annotated[int, typer.Option("-b", "--batch-size", help="Samples per micro-batch.")] = 8,
    knobs: Annotated[
        list[str] | None, typer.Option("--set", help="Set a knob; repeatable.", metavar="KEY=VALUE")
    ] = None,
    optimizers: Annotated[
        list[str] | None, typer.Option("-o", "--optimizer", help="As in compare; repeatable.", metavar="SPEC")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda:N, or a GPU to predict for.", metavar="NAME")
    ] = "auto",
    precision: Annotated[
        Precision, typer.Option("--precision", help="fp32, bf16, amp-bf16 or amp-fp16.", metavar="NAME")
    ] = Precision.FP32,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Write budgets to start from, and the baseline, from a comparison."""
    from memprof.files import check_writable

    target = _target(config)
    check_writable(target, force=True)
    if Path(source).suffix == ".json":
        from memprof.results import Comparison

        comparison = Comparison.load(source)
    else:
        comparison = _run(source, batch_size, knobs, optimizers, device, precision)
    _write(target, name or _name_of(comparison), comparison)


def _target(config: str | None) -> Path:
    """Return the file that takes the entry: the one named, the one there is, or a new memprof.toml."""
    from memprof.gate.toml import OWN_FILE, find_config

    if config is not None:
        return Path(config)
    try:
        return find_config(Path.cwd()).path
    except MemprofError as error:
        if error.exit_code != ExitCode.NOTHING_TO_DO:
            raise
        return Path(OWN_FILE)


def _name_of(comparison: Comparison) -> str:
    model = comparison.workload.model
    tail = model.rpartition(":")[2] if not model.startswith("hf:") else Path(model[3:]).parent.name
    return re.sub(r"[^\w-]+", "-", tail).strip("-_") or "training"


def _run(
    model: str,
    batch_size: int,
    knobs: list[str] | None,
    optimizers: list[str] | None,
    device: str,
    precision: Precision,
) -> Comparison:
    from memprof.api import compare
    from memprof.cli.watch import make_watcher
    from memprof.optimizers.spec import DEFAULT_OPTIMIZERS
    from memprof.workloads.spec import parse_knobs

    with make_watcher() as watcher:
        return compare(
            model,
            batch_size=batch_size,
            knobs=parse_knobs(knobs or []),
            optimizers=optimizers or DEFAULT_OPTIMIZERS,
            device=device,
            recipe=make_recipe(precision=precision.value),
            fit=False,
            on_progress=watcher,
        )


def _write(target: Path, name: str, comparison: Comparison) -> None:
    """Write the configuration and the baseline, or neither."""
    from memprof.files import check_writable, write_text
    from memprof.gate.baseline import empty_baseline, load_baseline, update
    from memprof.gate.starter import add_entry, model_from, prefix_of, starter

    figures = _finished(name, comparison)
    workload = comparison.workload
    moved = workload.model_copy(update={"model": model_from(workload.model, target.resolve().parent)})
    comparison = comparison.model_copy(update={"workload": moved})
    text, config = add_entry(target, name, starter(name, comparison, figures, prefix_of(target)))
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
    """Return the figures of the runs that finished, and say which did not."""
    from memprof.gate.figures import figures_of

    made = figures_of(name, comparison)
    good = [one for one in made if one.status == "ok"]
    for one in made:
        if one.status != "ok":
            tell(f"left out: {one.optimizer}: {one.reason}")
    if not good:
        raise MemprofError(f"no optimizer finished on {comparison.workload.model}, so there is nothing to limit")
    return good
