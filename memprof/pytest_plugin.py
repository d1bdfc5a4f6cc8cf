"""The pytest plugin: `@pytest.mark.memory_budget(...)` and the fixture `memory_block`.

    @pytest.mark.memory_budget(peak="2 GiB", optimizer="sm3", device="rtx-3060", batch_size=8)
    def test_small_gpt_trains_on_a_small_gpu():
        return Workload(model=..., batch=..., loss=...)

The test function is the workload: it is called in a worker process, as `memprof compare tests/test_memory.py:test_...`
would call it, and its parameters are the knobs. With `model="train.py:build"` that model is trained instead, and the
test itself runs as usual once the budget holds; so it does with `script="train.py --batch_size=12"`, a training script
as it is, named from pytest's root folder on. Limits are `peak`, `reserved`, `state`, `process` and
`max_batch_size`. The other keywords are those of an entry of `memprof gate`, and `[tool.memprof.defaults]` provides
their defaults.

    def test_forward(memory_block):
        with memory_block("cpu", limit="10 MiB") as used:
            model(x)
        assert used.retained_bytes == 0

Neither PyTorch nor the rest of memprof is imported until a test uses the marker or the fixture.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from memprof.gate.config import Budget
    from memprof.gate.measure import BudgetRunner
    from memprof.gate.test_marker import CheckedBudget
    from memprof.measurement.code_block import BlockUsage

MARKER = "memory_budget"
_NAMED = {"model", "script"}  # keywords with which a marker says itself what is trained
_HELP = (
    f"{MARKER}(peak=None, optimizer=..., device='auto', ...): the workload that the test returns must train within "
    "these limits, e.g. peak='2 GiB'; keywords as in an entry for `memprof gate`"
)
MeasureBlock = Callable[..., AbstractContextManager["BlockUsage"]]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, for `--strict-markers` and `--markers`."""
    config.addinivalue_line("markers", _HELP)
    config.stash[_STATE] = _PluginState()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the budgets of a marked test. The function is the model of each marker without `model=` or `script=`, and is
    then not run.
    """
    markers = [*pyfuncitem.iter_markers(MARKER)]
    if not markers:
        return None
    for marker in markers:
        _check(pyfuncitem, marker)
    return None if all(_NAMED & marker.kwargs.keys() for marker in markers) else True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the summary lines of a test's budgets to its report, which pytest-xdist sends to the main process."""
    report = yield
    if report.when == "call" and _LINES in item.stash:
        setattr(report, MARKER, item.stash[_LINES])
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print each figure of the budgets with its limit."""
    reports = (report for found in terminalreporter.stats.values() for report in found)
    lines = [line for report in reports for line in getattr(report, MARKER, ())]
    if lines and config.get_verbosity() >= 0:
        terminalreporter.section("memory budgets")
        for line in lines:
            terminalreporter.write_line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the worker processes."""
    config.stash[_STATE].processes.close()


@pytest.fixture
def memory_block() -> MeasureBlock:
    """Measure the memory that a block of code allocates: `with memory_block("cpu", limit="10 MiB") as used:`.

    `used` is a `memprof.measurement.code_block.BlockUsage` with `peak_bytes`, `retained_bytes` and `operators`. The
    test fails if the peak of the block is above `limit`, which is a size such as `"10 MiB"` or a number of bytes. The
    device is `cpu` or `cuda`.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise PyTorch's profiler prints to stderr
    return _measure_block


class _PluginState:
    """The state of the plugin during one run of pytest: the worker processes, started when they are first needed."""

    def __init__(self) -> None:
        self.processes = ExitStack()
        self._runner: BudgetRunner | None = None

    def runner(self, item: pytest.Item) -> BudgetRunner:
        """Return the budget runner; the first call starts its workers."""
        from memprof.gate.test_marker import budget_runner

        if self._runner is None:
            self._runner = self.processes.enter_context(budget_runner(item.config.rootpath))
        return self._runner


_STATE = pytest.StashKey[_PluginState]()
_LINES = pytest.StashKey[list[str]]()  # the summary lines of a test, one for each limit


def _check(item: pytest.Function, marker: pytest.Mark) -> None:
    checked = _run(item, marker)
    if not isinstance(checked, str):
        _report(item, checked)
        checked = checked.text() if checked.failed else ""
    if checked:
        pytest.fail(checked, pytrace=False)


def _run(item: pytest.Function, marker: pytest.Mark) -> CheckedBudget | str:
    """Return the result of a budget, or the error message if it could not be run."""
    from memprof.errors import MemprofError
    from memprof.gate.test_marker import check

    try:
        budget = _budget(item, marker)
        return check(item.config.stash[_STATE].runner(item), budget)
    except MemprofError as error:
        return str(error)


def _budget(item: pytest.Function, marker: pytest.Mark) -> Budget:
    from memprof.errors import UsageError
    from memprof.gate.test_marker import read_marker

    if marker.args:
        raise UsageError(f"@pytest.mark.{MARKER} takes keywords only, for example peak='2 GiB'")
    callspec = getattr(item, "callspec", None)
    parameters = dict(callspec.params) if callspec is not None else {}
    keywords = dict(marker.kwargs)
    if _NAMED & keywords.keys():
        parameters = {}
    else:
        _refuse_what_no_worker_has(item, parameters)
    knobs = {**parameters, **keywords.pop("knobs", {})}
    model = f"{item.path}:{item.originalname}"
    return read_marker(item.originalname, item.path, model, knobs, keywords, item.config.rootpath)


def _refuse_what_no_worker_has(item: pytest.Function, parameters: dict[str, Any]) -> None:
    from memprof.errors import UsageError

    way_out = "name the workload with model='train.py:build' instead"
    if item.cls is not None:
        raise UsageError(f"{item.name} is a method, which workers cannot call: write a function, or {way_out}")
    for name in inspect.signature(item.function).parameters:
        if name not in parameters:
            raise UsageError(f"{item.name} takes the fixture {name!r}, which workers do not have: {way_out}")
    for name, value in parameters.items():
        if not isinstance(value, (bool, int, float, str)):
            kind = type(value).__name__
            raise UsageError(f"the parameter {name} of {item.name} is of type {kind}; workers take numbers and texts")


def _report(item: pytest.Function, checked: CheckedBudget) -> None:
    """Store the figures for the JUnit XML, and a line for each limit for the summary."""
    from memprof.gate.wording import bound, figure

    for one in checked.figures:
        for name, value in one.values.items():
            item.user_properties.append((f"{one.optimizer} {name}", value))
    lines = item.stash.setdefault(_LINES, [])
    for verdict in checked.verdicts:
        if verdict.metric is not None:
            sizes = f"{verdict.metric} {figure(verdict)}, limit {bound(verdict)}"
            lines.append(f"{item.nodeid} {verdict.optimizer}: {sizes}")


@contextmanager
def _measure_block(device: str = "cpu", limit: str | int | None = None) -> Iterator[BlockUsage]:
    from memprof.measurement.code_block import measure_block
    from memprof.units import format_size, parse_size

    if device not in ("cpu", "cuda"):
        pytest.fail(f"memory_block watches 'cpu' or 'cuda', not {device!r}", pytrace=False)
    most = parse_size(limit) if isinstance(limit, str) else limit
    with measure_block(device) as usage:
        yield usage
    if most is not None and usage.peak_bytes > most:
        over = format_size(usage.peak_bytes - most)
        pytest.fail(f"the block took {usage.describe()}: {over} over its limit of {format_size(most)}", pytrace=False)
