"""Reads the budgets and their common defaults from `[tool.memprof]` in pyproject.toml or from memprof.toml.

    baseline = "memprof-baseline.json"         # the default, beside the configuration

    [defaults]
    device = "rtx-4090"

    [budgets.pretrain-small]
    model = "train.py:small_gpt"
    optimizers = ["sm3", "adam"]
    peak_allocated_bytes = ["20 GiB", "+2%"]

    [budgets.finetune]
    script = "finetune.py --batch_size=12"     # a training script as it is, in place of a model
    peak_reserved_bytes = "20 GiB"

A key of an entry replaces the same key of the defaults. `peak_allocated_bytes = []` drops a limit that the defaults
set. A script makes its own model and batches, so of the defaults it takes only those that do not describe a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.script import AS_IS, ScriptSpec, parse_script, parse_substitution
from memprof.documents.workload_spec import KnobValue
from memprof.errors import UsageError, did_you_mean
from memprof.gate.config_file import ConfigFile
from memprof.gate.limits import LEVELS, Level, Limit, parse_limits
from memprof.gate.metrics import FITTED, METRICS
from memprof.units import parse_size

DEFAULT_BASELINE = "memprof-baseline.json"
_TOP = ("baseline", "defaults", "budgets")
_NAME = re.compile(r"[A-Za-z0-9_][\w./-]*")
_MEASURED_REPEATS = 3


class _Settings(BaseModel):
    """The keys of an entry that are neither limits nor part of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    model: str | None = None
    script: str | None = None
    knobs: dict[str, KnobValue] = Field(default_factory=dict)
    batch_size: int = Field(default=8, ge=1)
    inputs: list[str] = Field(default_factory=list)
    target: str | None = None
    optimizers: list[str] = Field(default=list(DEFAULT_OPTIMIZERS), min_length=1)
    device: str = "auto"
    capacity: str | None = None
    repeats: int | None = Field(default=None, ge=1, le=20)
    level: Level = "error"
    message: str | None = None


# What describes a model and how it is trained; a script does that itself.
_OF_A_MODEL = frozenset({"knobs", "batch_size", "inputs", "target", *FITTED, *Recipe.model_fields}) - {"steps"}
KEYS = (*_Settings.model_fields, *Recipe.model_fields, *METRICS)  # the keys that an entry may have


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One named entry of the configuration.

    Attributes:
        name: The name of the entry.
        settings: What is trained, on which device, and how serious a violation is.
        recipe: How a model is trained.
        script: The program to run in place of a model, or None.
        steps: The number of training steps of a script; None for as many as it takes until two in a row allocate alike.
        limits: The limits on its figures. If there are none, the training only has to fit the device.
        optimizers: The optimizer specs in canonical form.
        file: The name of the configuration file, for annotations.
        line: The line of that file where the entry begins, or None if it is not known.
    """

    name: str
    settings: _Settings
    recipe: Recipe
    script: ScriptSpec | None
    steps: int | None
    limits: tuple[Limit, ...]
    optimizers: tuple[str, ...]
    file: str
    line: int | None

    @property
    def needs_fit(self) -> bool:
        """Whether a limit requires the search for the largest batch or model."""
        return any(limit.metric.name in FITTED for limit in self.limits)

    @property
    def repeats(self) -> int:
        """How many times the entry is measured.

        By default that is 3 if there is a limit on the process's memory, which varies from run to run, and 1 otherwise.
        """
        limited = any(limit.metric.name == "process_bytes" for limit in self.limits)
        return self.settings.repeats or (_MEASURED_REPEATS if limited else 1)

    @property
    def capacity_bytes(self) -> int | None:
        """The capacity in bytes that replaces the device's memory, or None."""
        return parse_size(self.settings.capacity) if self.settings.capacity is not None else None


@dataclass(frozen=True)
class Config:
    """The whole configuration.

    Attributes:
        path: The path of the configuration file.
        baseline: The path of the baseline.
        budgets: The entries, in the order of the file.
    """

    path: Path
    baseline: Path
    budgets: tuple[Budget, ...]

    def select(self, patterns: Sequence[str]) -> tuple[Budget, ...]:
        """Return the entries that match at least one of the shell patterns; without patterns, return all entries.

        Entries whose level is off are left out.

        Raises:
            UsageError: A pattern matches no entry.
        """
        names = [budget.name for budget in self.budgets]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"no budget is called {pattern!r}{did_you_mean(pattern, names)}")
        return tuple(
            budget
            for budget in self.budgets
            if budget.settings.level != "off"
            and (not patterns or any(fnmatchcase(budget.name, pattern) for pattern in patterns))
        )


def read_config(file: ConfigFile) -> Config:
    """Check the content of a configuration file.

    Args:
        file: The parsed file.

    Returns:
        The configuration.

    Raises:
        UsageError: A key is unknown, or a value is not valid. The message names the file and the line.
    """
    table = file.table
    unknown = next((key for key in table if key not in _TOP), None)
    if unknown is not None:
        raise UsageError(f"{file.path.name}: there is no key {unknown!r}{did_you_mean(unknown, list(_TOP))}")
    baseline = table.get("baseline", DEFAULT_BASELINE)
    if not isinstance(baseline, str):
        raise UsageError(f"{file.path.name}: baseline is {baseline!r}; it must be a path in quotes")
    defaults = _table(file, "defaults", table.get("defaults", {}))
    _check_keys(file, "defaults", defaults)
    entries = _table(file, "budgets", table.get("budgets", {}))
    budgets = tuple(_budget(file, name, defaults, entry) for name, entry in entries.items())
    return Config(file.path, file.path.parent / baseline, budgets)


def _table(file: ConfigFile, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{file.path.name}: {file.prefix}{name} is {value!r}; it must be a table")
    return value


def _check_keys(file: ConfigFile, table: str, entry: dict[str, Any]) -> None:
    unknown = next((key for key in entry if key not in KEYS), None)
    if unknown is not None:
        hint = did_you_mean(unknown, list(KEYS))
        raise UsageError(f"{file.where(table, unknown)} has no key {unknown!r}{hint}")


def _budget(file: ConfigFile, name: str, defaults: dict[str, Any], entry: Any) -> Budget:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{file.path.name}: a budget cannot be called {name!r}; use letters, digits and . _ - /")
    table = f'budgets."{name}"' if set(name) & set("./") else f"budgets.{name}"
    _check_keys(file, table, _table(file, table, entry))
    merged = _merged(file, table, defaults, entry)
    settings = _validated(file, table, _Settings, {key: merged[key] for key in merged if key in _Settings.model_fields})
    recipe = _validated(file, table, Recipe, {key: merged[key] for key in merged if key in Recipe.model_fields})
    limits: list[Limit] = []
    for metric in METRICS.values():
        if metric.name in merged:
            with _located(file, table, metric.name):
                limits += parse_limits(metric, merged[metric.name], settings.level, settings.message)
    with _located(file, table, "capacity"):
        parse_size(settings.capacity or "1 B")
    script = None
    with _located(file, table, "script"):
        if settings.script is not None:
            script = parse_script(settings.script)
    with _located(file, table, "optimizers"):
        optimizers = [
            parse_optimizer(text).text if script is None else parse_substitution(text).spec.text
            for text in settings.optimizers
        ]
    budget = Budget(
        name=name,
        settings=settings,
        recipe=recipe,
        script=script,
        steps=recipe.steps if script is not None and "steps" in merged else None,
        limits=tuple(limit for limit in limits if limit.level != "off"),
        optimizers=tuple(optimizers),
        file=file.path.name,
        line=file.line_of(table),
    )
    _refuse(file, table, budget)
    return budget


def _merged(file: ConfigFile, table: str, defaults: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of an entry, with those of the defaults that apply to it."""
    trained = [key for key in ("model", "script") if key in entry] or [k for k in ("model", "script") if k in defaults]
    if not trained:
        raise UsageError(
            f"{file.where(table)} lacks 'model' or 'script'; say what is trained, e.g. model = \"gpt2\" or "
            'script = "train.py --batch_size=12"'
        )
    if len(trained) > 1:
        raise UsageError(f"{file.where(table, 'script')} has a 'model' and a 'script'; keep one")
    if trained == ["model"]:
        return {key: value for key, value in {**defaults, **entry}.items() if key != "script"}
    own = next((key for key in entry if key in _OF_A_MODEL), None)
    if own is not None:
        raise UsageError(
            f"{file.where(table, own)} has the key {own!r}, which describes a model, and a script makes its own: "
            f"give it in the script's arguments or leave it out"
        )
    general = {key: value for key, value in defaults.items() if key not in _OF_A_MODEL and key != "model"}
    return {"optimizers": [AS_IS], **general, **entry}


def _refuse(file: ConfigFile, table: str, budget: Budget) -> None:
    """Raise a UsageError for mistakes that can be found without running anything."""
    twice = next((text for text in budget.optimizers if budget.optimizers.count(text) > 1), None)
    if twice is not None:
        raise UsageError(f"{file.where(table, 'optimizers')} names the optimizer {twice!r} twice; keep one")
    if budget.settings.device == "cpu":
        for limit in budget.limits:
            if "_reserved_" in limit.metric.name or "_upper_" in limit.metric.name:
                place = file.where(table, limit.metric.name)
                raise UsageError(f"{place} limits {limit.metric.name} on the CPU: {limit.metric.absent}")


@contextmanager
def _located(file: ConfigFile, table: str, key: str) -> Iterator[None]:
    """Put the location of a key in front of the sentence of a UsageError."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{file.where(table, key)} {error}") from None


def _validated(file: ConfigFile, table: str, model: type[Any], values: dict[str, Any]) -> Any:
    try:
        return model.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        hint = did_you_mean(str(first["input"]), list(LEVELS)) if key == "level" else ""
        wanted = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        if not key:  # the values contradict each other, and the message names them as command-line options
            keys = re.sub(r"--([a-z-]+)", lambda option: option[1].replace("-", "_"), wanted)
            raise UsageError(f"{file.where(table)}: {keys}") from None
        if first["type"] == "list_type" and isinstance(first["input"], str):
            wanted = f'should be a list: ["{first["input"]}"]'
        raise UsageError(f"{file.where(table, key)} {key} = {first['input']!r}: it {wanted}{hint}") from None
