from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from pydantic import ValidationError

from memprof.documents.comparison import CATEGORIES, SCHEMA, Comparison, Run
from memprof.documents.recipe import Recipe
from memprof.errors import UsageError
from tests.comparisons import make_broken_run, make_comparison, make_run

DATA = Path(__file__).parents[2] / "data" / "comparisons"
COMPARISONS = {
    "full": make_comparison(),
    "empty": make_comparison(runs=[]),
    "broken": make_comparison(make_broken_run("a", "oom", "full"), make_broken_run("b", "failed", None)),
}

PLAIN_RECIPE = Recipe().model_dump(mode="json")


@pytest.mark.parametrize("name", COMPARISONS)
def test_what_is_saved_is_what_is_loaded(name: str, tmp_path: Path) -> None:
    COMPARISONS[name].save(tmp_path / "x.json")
    assert Comparison.load(tmp_path / "x.json") == COMPARISONS[name]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("path", sorted(DATA.glob("*.json")), ids=lambda path: path.name)
def test_documents_of_the_published_schema_still_load_and_stay_as_they_are(path: Path) -> None:
    """What was added to the schema since is absent in them, or is what all did then; nothing else has changed."""
    comparison = Comparison.load(path)
    assert _same_but_for_absent(json.loads(comparison.to_json()), json.loads(path.read_text(encoding="utf-8")))
    assert comparison.runs


def _same_but_for_absent(now: Any, before: Any) -> bool:
    if isinstance(before, dict):
        added = {key: now[key] for key in now if key not in before}
        as_before = added.items() <= PLAIN_RECIPE.items() or not any(added.values())
        return as_before and all(_same_but_for_absent(now[key], value) for key, value in before.items())
    if isinstance(before, list):
        return len(now) == len(before) and all(map(_same_but_for_absent, now, before))
    return type(now) is type(before) and bool(now == before)


def test_there_are_saved_documents() -> None:
    assert len(list(DATA.glob("*.json"))) >= 2


def published() -> dict[str, Any]:
    return Comparison.model_json_schema(by_alias=True)


@pytest.mark.parametrize("name", COMPARISONS)
def test_documents_follow_the_published_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(published())
    jsonschema.validate(json.loads(COMPARISONS[name].to_json()), published())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("runs", 0, "state", "bytes"), "many"),
        (("runs", 0, "state", "bytes"), 1.5),
        (("runs", 0, "status"), "fine"),
        (("runs", 0, "surprise"), 1),
        (("schema",), "memprof.comparison/2"),
        (("capacity", "source"), "guess"),
    ],
)
def test_the_schema_and_the_loader_refuse_the_same_documents(
    path: tuple[str | int, ...], value: Any, tmp_path: Path
) -> None:
    document = json.loads(COMPARISONS["full"].to_json())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, published())
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(UsageError) as caught:
        Comparison.load(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_absent_figures_are_null() -> None:
    run = json.loads(make_comparison(make_broken_run("a", "oom", "full")).to_json())["runs"][0]
    assert {run[name] for name in ("parameters", "state", "peak", "breakdown", "steps", "fit")} == {None}


def test_every_size_is_an_integer_of_bytes() -> None:
    def sizes(node: Any) -> list[Any]:
        if isinstance(node, list):
            return [size for item in node for size in sizes(item)]
        if not isinstance(node, dict):
            return []
        own = [value for key, value in node.items() if key == "bytes" or key.endswith("_bytes")]
        return own + [size for value in node.values() for size in sizes(value)]

    flat = [
        item
        for size in sizes(json.loads(COMPARISONS["full"].to_json()))
        for item in ([size], size)[isinstance(size, list)]
    ]
    assert len(flat) > 100
    assert all(size is None or type(size) is int for size in flat)


def test_breakdowns_sum_to_their_total() -> None:
    breakdown = make_run("adam", 8).breakdown
    assert breakdown is not None
    assert sum(breakdown.by_category.values()) == breakdown.total_bytes == sum(breakdown.by_module.values())
    assert set(breakdown.by_category) <= set(CATEGORIES)


def test_documents_are_frozen() -> None:
    with pytest.raises(ValidationError):
        COMPARISONS["full"].reference = "sgd"
    with pytest.raises(ValidationError):
        Run.model_validate({"optimizer": {"spec": "a", "name": "a"}, "device": "cpu", "status": "ok", "extra": 1})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "x.json:1: not JSON (Expecting value); is the file cut off?"),
        ('{"schema": "memprof.comp', "x.json:1: not JSON"),
        ("[]", f"has schema None, this version reads '{SCHEMA}'"),
        ('{"schema": "memprof.comparison/2"}', "has schema 'memprof.comparison/2'"),
        (f'{{"schema": "{SCHEMA}"}}', "is no valid comparison: environment: Field required"),
    ],
)
def test_what_is_no_comparison_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        Comparison.load(tmp_path / "x.json")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_document_cut_anywhere_is_refused(share: float, tmp_path: Path) -> None:
    text = COMPARISONS["full"].to_json()
    (tmp_path / "x.json").write_text(text[: int(len(text) * share)])
    with pytest.raises(UsageError, match="is the file cut off"):
        Comparison.load(tmp_path / "x.json")


def test_unreadable_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*absent\.json: No such file"):
        Comparison.load(tmp_path / "absent.json")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        Comparison.load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        Comparison.load(tmp_path / "binary")


def test_an_unwritable_path_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*x\.json: No such file or directory; choose"):
        COMPARISONS["full"].save(tmp_path / "no" / "x.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        COMPARISONS["full"].save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_failed_write_keeps_the_old_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.json"
    COMPARISONS["empty"].save(target)

    def full(self: Path, *arguments: Any, **options: Any) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(UsageError, match="No space left on device"):
            COMPARISONS["full"].save(target)
    assert Comparison.load(target) == COMPARISONS["empty"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_figures_that_are_not_finite_are_not_written() -> None:
    steps = {"seconds": [1.0], "losses": [float("nan")], "allocated_bytes": [1]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_comparison(make_run("adam", 8, steps=steps)).to_json()
