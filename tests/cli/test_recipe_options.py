"""The options of a recipe are its fields, in every command that takes one."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest
from annotated_types import Ge

from memprof.cli import advise, compare, fit, gate_init
from memprof.cli.options import MEASURED, RECIPE_OPTIONS, make_recipe
from memprof.documents.recipe import Recipe
from memprof.errors import UsageError

COMMANDS = [(compare.compare, ()), (fit.fit, MEASURED), (advise.advise, MEASURED), (gate_init.init, MEASURED)]


def test_every_field_is_an_option_with_the_same_default_and_choices() -> None:
    assert set(RECIPE_OPTIONS) == set(Recipe.model_fields)
    for name, (annotation, default) in RECIPE_OPTIONS.items():
        field, kind = Recipe.model_fields[name], get_args(annotation)[0]
        assert getattr(default, "value", default) == field.default
        if hasattr(kind, "__members__"):
            assert [member.value for member in kind] == list(get_args(field.annotation))


@pytest.mark.parametrize(("command", "without"), COMMANDS)
def test_every_command_has_them(command: object, without: tuple[str, ...]) -> None:
    found = inspect.signature(command).parameters  # type: ignore[arg-type]
    assert "recipe" not in found
    assert [name for name in found if name in RECIPE_OPTIONS] == [n for n in RECIPE_OPTIONS if n not in without]


@pytest.mark.parametrize(
    "name", [n for n, f in Recipe.model_fields.items() if any(isinstance(m, Ge) for m in f.metadata)]
)
def test_a_value_out_of_range_is_named_by_its_option(name: str) -> None:
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} -1: the value should be greater"):
        make_recipe({name: -1})
