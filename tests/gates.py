"""Budgets, figures and baselines built by hand for tests: round figures, nothing measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memprof.gate.baseline import Baseline
from memprof.gate.config import Budget, Config, read_config
from memprof.gate.config_file import ConfigFile, parse_toml
from memprof.gate.entry_figures import EntrySetup, Figures, Fingerprint
from memprof.gate.judge import Policy, judge
from memprof.gate.report import ConfigLocation, Report, exit_code

MIB = 2**20
GIB = 2**30


def config_of(text: str, name: str = "memprof.toml") -> Config:
    path = Path(name)
    document = parse_toml(path, text)
    if name == "pyproject.toml":
        return read_config(ConfigFile(path, text, document["tool"]["memprof"], "tool.memprof."))
    return read_config(ConfigFile(path, text, document, ""))


def budget_of(*lines: str, name: str = "pretrain") -> Budget:
    text = "\n".join(['device = "rtx-4090"', 'model = "gpt2"', 'optimizers = ["sm3", "adam"]'])
    (budget,) = config_of(f"[defaults]\n{text}\n[budgets.{name}]\n" + "\n".join(lines)).budgets
    return budget


def make_setup(**changes: Any) -> EntrySetup:
    values: dict[str, Any] = {"model": "gpt2", "knobs": {"n_layers": 12}, "batch_size": 8}
    return EntrySetup(**{**values, **changes})


def make_figures(optimizer: str = "adam", entry: str = "pretrain", **changes: Any) -> Figures:
    figures: dict[str, Any] = {
        "entry": entry,
        "optimizer": optimizer,
        "source": "predicted",
        "device": "rtx-4090",
        "fingerprint": Fingerprint(torch="2.13.0"),
        "setup": make_setup(),
        "values": {"state_bytes": GIB, "peak_allocated_bytes": 10 * GIB, "peak_reserved_bytes": 11 * GIB},
        "phase": "backward",
        "holders": {
            "activations": {"layers.*.mlp.0": 4 * GIB, "layers.*.mlp.2": 2 * GIB, "layers.*.norm": GIB},
            "optimizer_state": {"layers.*.mlp.0": GIB},
            "parameters": {"layers.*.mlp.0": 2 * GIB},
        },
        "capacity_bytes": 23 * GIB,
    }
    return Figures(**{**figures, **changes})


def with_values(figures: Figures, **values: int) -> Figures:
    return figures.model_copy(update={"values": {**figures.values, **values}})


def baseline_of(*accepted: Figures) -> Baseline:
    entries: dict[str, Any] = {}
    for figures in accepted:
        entries.setdefault(figures.entry, {})[figures.optimizer] = figures.record()
    return Baseline(schema="memprof.baseline/1", memprof="0.1.0", entries=entries)


def report_of(
    budgets: list[Budget], figures: list[Figures], accepted: list[Figures] | None = None, **policy: bool
) -> Report:
    verdicts = judge(budgets, figures, baseline_of(*(accepted or [])), Policy(**policy))
    return Report(
        schema="memprof.gate/1",
        memprof="0.1.0",
        config="memprof.toml",
        baseline="memprof-baseline.json",
        places={budget.name: ConfigLocation(file="memprof.toml", line=5) for budget in budgets},
        figures=figures,
        verdicts=verdicts,
        accept="memprof gate --update-baseline",
        exit_code=exit_code(verdicts, figures),
    )
