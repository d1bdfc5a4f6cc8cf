from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, OptimizerSpec, OptionValue, parse_optimizer
from memprof.errors import UsageError
from tests import children


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("sm3", "sm3", {}),
        ("sm3,momentum=0.9", "sm3", {"momentum": 0.9}),
        ("Adam , lr = 1e-3", "adam", {"lr": 0.001}),
        ("torch.optim:AdamW,fused=TRUE", "torch.optim:AdamW", {"fused": True}),
        ("my/opt.py:Outer.Inner", "my/opt.py:Outer.Inner", {}),
        ("adam,betas=(0.9,0.95),foreach=None", "adam", {"betas": [0.9, 0.95], "foreach": None}),
        ("x:Y,a=[1,(2,3)],b=(1,),c=()", "x:Y", {"a": [1, [2, 3]], "b": [1], "c": []}),
        ("x:Y,a=rms,b='1',c=\"a,b=(\",d=''", "x:Y", {"a": "rms", "b": "1", "c": "a,b=(", "d": ""}),
        ("x:Y,path=a=b", "x:Y", {"path": "a=b"}),
        ("x:Y,n=-3,big=1_000", "x:Y", {"n": -3, "big": 1000}),
    ],
)
def test_grammar(text: str, name: str, options: dict[str, OptionValue]) -> None:
    spec = parse_optimizer(text)
    assert (spec.name, spec.options) == (name, options)
    for key, value in options.items():
        assert type(spec.options[key]) is type(value)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ADAM,lr=1e-3 , betas=[ .9, 0.95 ]", "adam,lr=0.001,betas=(0.9,0.95)"),
        ("x:Y,a=True,b=NONE,c=\"it's\",d='x'", 'x:Y,a=true,b=none,c="it\'s",d=x'),
        ("x:Y,a='true',b='1e3',c='a b'", "x:Y,a='true',b='1e3',c='a b'"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert parse_optimizer(text).text == canonical


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no name"),
        ("lr=1", "begins with an option"),
        ("a b", "no name"),
        ("os:", "no import path"),
        ("adam,", "is not key=value"),
        ("adam,lr", "'lr' is not key=value"),
        ("adam,1x=2", "is not key=value"),
        ("adam,lr=", "empty value"),
        ("adam,lr=1,lr=2", "twice"),
        ("adam,betas=(0.9,0.95", "')' is missing"),
        ("adam,betas=0.9)", "unbalanced ')'"),
        ("adam,betas=(0.9]", "unbalanced ']'"),
        ("adam,x='a", "is missing"),
        ("adam,x='a'b", "closing quote"),
        ("adam,x=(1)(2)", "unbalanced"),
        ("adam,x=(1)2", "closing bracket"),
        ("adam,x=(1,,2)", "empty value"),
        ("adam,x=(((1)))", "two levels"),
        ("adam,lr=inf", "finite"),
        ("adam,lr=1e999", "finite"),
    ],
)
def test_mistakes_are_one_sentence(text: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_optimizer(text)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
# The grammar has no escapes: a string holds one kind of quote at most.
TEXT = st.text().filter(lambda text: not ("'" in text and '"' in text))
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
VALUES = SCALARS | st.lists(SCALARS | st.lists(SCALARS, max_size=3), max_size=4)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


def spell(value: OptionValue) -> str:
    """Write a value the long way: every string quoted, lists in square brackets."""
    if isinstance(value, list):
        return "[" + ", ".join(spell(item) for item in value) + ",]" if value else "[]"
    if isinstance(value, str):
        return f'"{value}"' if "'" in value else f"'{value}'"
    return repr(value)


@given(st.sampled_from(["sm3", "torch.optim:Adam", "a/b.py:C"]), st.dictionaries(KEYS, VALUES, max_size=4))
def test_every_value_survives_writing_and_reading(name: str, options: dict[str, OptionValue]) -> None:
    long_way = ",".join([name, *(f"{key} = {spell(value)}" for key, value in options.items())])
    spec = parse_optimizer(long_way)
    assert repr(spec.options) == repr(options)  # repr, to tell True from 1 and 0.0 from -0.0
    assert parse_optimizer(spec.text) == spec
    assert OptimizerSpec.model_validate_json(spec.model_dump_json()) == spec


@given(st.text())
def test_any_text_parses_or_is_a_usage_error(text: str) -> None:
    try:
        spec = parse_optimizer(text)
    except UsageError:
        return
    assert parse_optimizer(spec.text) == spec


def test_spec_is_frozen_closed_and_hashable() -> None:
    spec = parse_optimizer("adam,lr=0.1")
    assert len({spec, parse_optimizer("Adam,lr=1e-1")}) == 1
    with pytest.raises(ValidationError):
        spec.name = "sgd"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        OptimizerSpec(text="a", name="a", lr=1)  # type: ignore[call-arg]


def test_defaults_are_canonical() -> None:
    assert tuple(parse_optimizer(text).text for text in DEFAULT_OPTIMIZERS) == DEFAULT_OPTIMIZERS


def test_specs_and_the_registry_need_no_torch() -> None:
    modules = "memprof.optimizers.registry, memprof.optimizers.implementation"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = children.run([sys.executable, "-c", code])
    assert result.stdout.strip() == "False"
