"""What --set means, and the spec as plain data."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from memprof.documents.workload_spec import KnobValue, WorkloadSpec, parse_knobs
from memprof.errors import UsageError
from tests import children


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("1_000", 1000),
        ("-3", -3),
        ("0.1", 0.1),
        (".5", 0.5),
        ("1e-3", 1e-3),
        ("2.5E4", 2.5e4),
        ("true", True),
        ("False", False),
        ("8b", "8b"),
        ("1__0", "1__0"),
        ("nan", "nan"),
        ("e3", "e3"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_values(text: str, value: KnobValue) -> None:
    parsed = parse_knobs([f"key={text}"])["key"]
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans())
def test_what_python_prints_is_read_back(value: float) -> None:
    parsed = parse_knobs([f"key={value}"])["key"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["n_layers"], "--set takes KEY=VALUE, for example --set n_layers=12, not 'n_layers'"),
        (["=3"], "--set takes KEY=VALUE"),
        (["n layers=3"], "--set takes KEY=VALUE"),
        (["a=1", "a=2"], "--set a is given twice; keep one"),
        (["batch_size=8"], "the batch size is not set with --set; write --batch-size 8"),
    ],
)
def test_faults_are_one_sentence(items: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_knobs(items)
    assert str(caught.value).startswith(message)


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.booleans() | st.text() | st.floats(0, 1)))
def test_a_spec_survives_json(knobs: dict[str, KnobValue]) -> None:
    spec = WorkloadSpec(model="m", knobs=knobs, inputs=("float32[B]",), target="int64[B]<3")
    back = WorkloadSpec.model_validate_json(spec.model_dump_json())
    assert back == spec
    assert [type(v) for v in back.knobs.values()] == [type(v) for v in knobs.values()]


def test_a_spec_is_closed_and_frozen() -> None:
    with pytest.raises(ValidationError):
        WorkloadSpec(model="m", knob={})  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        WorkloadSpec(model="m").model = "n"


def test_the_spec_is_read_without_torch() -> None:
    code = "import sys, memprof.workloads.loader; assert 'torch' not in sys.modules"
    children.run([sys.executable, "-c", code])
