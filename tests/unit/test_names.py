"""One name for one thing: no two classes share a name, and a file name that occurs twice means the same both times."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Public names: a user imports one or the other, from the module of the trainer that the callback is for.
SHARED_CLASSES = {"MemoryRecorder": {"memprof.callbacks.huggingface", "memprof.callbacks.lightning"}}
# A file of `memprof/cli` has the name of its command. The others that occur more than once, and what each means.
SHARED_FILES = {
    "advice": "advice on what to change: the document, and the part of a report",
    "attention": "attention on CUDA: the kernel that PyTorch chooses, and what that kernel allocates",
    "comparison": "a comparison: the document, and how it grows run by run",
    "diff": "the difference of two comparisons: how it is computed, and how it is printed",
    "fit": "the report of the largest values that fit: the document, and its rendering",
    "github": "output for GitHub, of the gate and of a report",
    "huggingface": "Hugging Face: its models, and its Trainer",
    "kernels": "the kernels behind operators: of the CPU, of CUDA, and of SM3",
    "markdown": "output as Markdown, of the gate and of a report",
    "matrix": "the matrix of optimizers and devices: how it is filled, and how it is drawn",
    "modules": "the module whose forward pass runs, on real and on fake tensors",
    "optimizers": "optimizers: of a spec, and of a script",
    "progress": "messages of progress: of trials to the terminal, and of a script to its trial",
    "ranks": "the ranks of a training, which is a package where they run and a part of a report",
    "report": "a report for people: of a document, and of the gate",
    "run": "the entry of its room: what a caller asks the room to do from start to end",
    "script": "a training script: the document, and how it is measured and predicted",
    "semantics": "what operators do differently on a device: the choice of the device, and each device",
    "session": "the protocol of phases and labels, and a script that follows it",
    "sm3": "SM3: the optimizer, and what its kernel takes on CUDA",
    "timeline": "the memory during one training step: the document, how it is made, and how it is drawn",
    "training": "the training step, and the same step on fake tensors",
    "wording": "words for people: of documents, and of the gate",
}
MOST_WITH_ONE_PREFIX = 2


def sources() -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of each module of the two packages."""
    for package in ("memprof", "sm3"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def shared_classes(texts: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return the classes of several modules by name, private ones under the name that they would have in public.

    Args:
        texts: the name and the source of each module.
    """
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for module, text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].append(module)
    return {name: set(found) for name, found in homes.items() if len(found) > 1}


def shared_files(modules: Iterable[str]) -> set[str]:
    """Return the file names that occur more than once outside of `memprof.cli`, packages included.

    Args:
        modules: dotted names; those of packages end with `__init__`.
    """
    names = [module.removesuffix(".__init__").rpartition(".")[2] for module in modules]
    return {name for name, count in Counter(names).items() if count > 1}


def crowded_prefixes(modules: Iterable[str]) -> list[str]:
    """Return the folders that have more than two files with the same first word, which should be a folder instead."""
    firsts: Counter[str] = Counter()
    for module in modules:
        folder, _, name = module.rpartition(".")
        if not name.startswith("_"):
            firsts[f"{folder}.{name.split('_')[0]}"] += 1
    return [first for first, count in firsts.items() if count > MOST_WITH_ONE_PREFIX]


def test_no_two_classes_share_a_name() -> None:
    assert shared_classes((name, path.read_text(encoding="utf-8")) for name, path in sources()) == SHARED_CLASSES


def test_a_file_name_that_occurs_twice_is_known_to_mean_one_thing() -> None:
    listed = {name for name, _ in sources()}
    commands = {name for name in listed if name.startswith("memprof.cli.")}
    assert shared_files(listed - commands) == set(SHARED_FILES)


def test_no_prefix_stands_for_a_folder() -> None:
    assert crowded_prefixes(name for name, _ in sources()) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [("class Axis: ...", "class Axis: ..."), ("class Axis: ...", "def f():\n    class _Axis: ...")],
    ids=["public", "private"],
)
def test_a_shared_class_is_found(first: str, second: str) -> None:
    assert shared_classes([("a", first), ("b", second)]) == {"Axis": {"a", "b"}}


def test_shared_files_and_crowded_prefixes_are_found() -> None:
    assert shared_files(["memprof.a.launch", "sm3.launch", "memprof.gate.__init__", "memprof.cli.gate"]) == {
        "launch",
        "gate",
    }
    assert crowded_prefixes(["memprof.a.fit", "memprof.a.fit_search", "memprof.a.fit_report", "memprof.b.fit"]) == [
        "memprof.a.fit"
    ]
