"""Dependencies point one way: the rooms of the package in order, and every import held against it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the foundation to the roof: a room imports what stands before it. CONTRIBUTING.md draws it.
ROOMS = (
    *("errors", "torch_private", "units", "files", "user_code", "documents", "workloads", "trace", "allocator"),
    *("export", "optimizers", "devices", "training", "scripts", "workers", "measurement", "prediction", "search"),
    *("comparison", "script_comparison", "callbacks", "report", "api", "api_run", "doctor", "gate", "reproduce"),
    *("pytest_plugin", "cli", "__init__", "__main__"),
)
SIBLINGS = frozenset({("measurement", "prediction"), ("prediction", "measurement")})  # two sources of one trace


def modules(package: str) -> dict[str, Path]:
    """Return the path of each module, lazy and typing imports included in what is read of it."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield each module of the package that a module imports, wherever it does, with the line."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            wanted = {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
            yield from ((each, node.lineno) for each in wanted if each in known and each != name)


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def upward_imports(graph: dict[str, list[tuple[str, int]]]) -> list[str]:
    found = []
    for name, imported in graph.items():
        for other, line in imported:
            here, there = room_of(name), room_of(other)
            if ROOMS.index(there) > ROOMS.index(here) or (here, there) in SIBLINGS:
                found.append(f"{name}:{line} imports {other}, which stands above it")
    return found


@pytest.fixture(scope="module", params=["memprof", "sm3"])
def graph(request: pytest.FixtureRequest) -> dict[str, list[tuple[str, int]]]:
    known = modules(request.param)
    return {name: list(imports_of(name, path, known)) for name, path in known.items()}


def test_no_circle_of_files(graph: dict[str, list[tuple[str, int]]]) -> None:
    try:
        TopologicalSorter({name: {other for other, _ in found} for name, found in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"files import each other in a circle: {' -> '.join(error.args[1])}")


def test_every_import_points_down() -> None:
    known = modules("memprof")
    assert {room_of(name) for name in known} == set(ROOMS)
    assert upward_imports({name: list(imports_of(name, path, known)) for name, path in known.items()}) == []


def test_an_import_that_points_up_is_named() -> None:
    graph = {"memprof.trace.events": [("memprof.report.write", 7)], "memprof.prediction.run": []}
    assert upward_imports(graph) == ["memprof.trace.events:7 imports memprof.report.write, which stands above it"]
    sideways = {"memprof.prediction.run": [("memprof.measurement.meter", 1)]}
    assert len(upward_imports(sideways)) == 1


def test_sm3_stands_alone() -> None:
    lines = [line for path in (ROOT / "sm3").rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if line.strip().startswith(("import memprof", "from memprof"))]
