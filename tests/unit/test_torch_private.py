"""The table of PyTorch's private names is what the source uses, by its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from memprof.torch_private import CHECKED_ON

ROOT = Path(__file__).parents[2]
SOURCES = [path for package in ("memprof", "sm3") for path in sorted((ROOT / package).rglob("*.py"))]


def test_every_private_name_is_in_the_table() -> None:
    used = {name for path in SOURCES for name in private_names(path.read_text(encoding="utf-8"))}
    assert used - set(CHECKED_ON) == set(), "add them to memprof/torch_private.py, with the versions you tried"
    assert set(CHECKED_ON) - used == set(), "nothing uses them any more"


@pytest.mark.parametrize("name", sorted(CHECKED_ON))
def test_the_versions_are_in_order(name: str) -> None:
    versions = [tuple(map(int, version.split("."))) for version in CHECKED_ON[name]]
    assert versions
    assert versions == sorted(set(versions))


def test_the_names_are_found_however_they_are_written() -> None:
    source = """
import torch, torch._dynamo
from torch._C import _profiler as probe
from torch.utils._python_dispatch import TorchDispatchMode
torch._C._autograd.DeviceType.CUDA
probe.ProfilerState.CPU
patch("torch.cuda._lazy_init")
torch.ops.aten._softmax, torch.nn.Module.__init__, memory._snapshot
"""
    assert set(private_names(source)) == {
        "torch._dynamo",
        "torch._C._profiler.ProfilerState",
        "torch.utils._python_dispatch.TorchDispatchMode",
        "torch._C._autograd.DeviceType",
        "torch.cuda._lazy_init",
    }


def private_names(source: str) -> set[str]:
    """Return the private names of PyTorch in a module up to the first class, and none that only leads to another."""
    tree = ast.parse(source)
    homes = {"torch": "torch", **dict(_imports(tree))}
    found = {home for home in homes.values() if _is_private(home)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = _chain(node)
            if first in homes:
                found.add(".".join([homes[first], *rest]))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    names = {_up_to_class(name) for name in found if _is_private(name)}
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _chain(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def _is_private(name: str) -> bool:
    first, *rest = name.split(".")
    plain = first == "torch" and all(part.isidentifier() for part in rest)
    return plain and rest[:1] != ["ops"] and any(part[:1] == "_" and part[:2] != "__" for part in rest)


def _up_to_class(name: str) -> str:
    parts = name.split(".")
    ends = [place for place, part in enumerate(parts) if part[:1].isupper()]
    return ".".join(parts[: ends[0] + 1] if ends else parts)
