"""The grammar of --input and --target."""

from __future__ import annotations

import keyword

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memprof.errors import UsageError
from memprof.workloads.tensor_grammar import DTYPES, INT_BITS, TensorSpec, parse_inputs, parse_tensor

dims = st.lists(st.none() | st.integers(1, 10**6), max_size=5).map(tuple)
names = st.none() | st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda n: not keyword.iskeyword(n))


@st.composite
def tensor_specs(draw: st.DrawFn) -> TensorSpec:
    dtype = draw(st.sampled_from(DTYPES))
    bound = st.none() | st.integers(1, 2 ** INT_BITS[dtype] - 1) if dtype in INT_BITS else st.none()
    return TensorSpec(dtype, draw(dims), draw(bound), draw(names))


@given(tensor_specs())
def test_what_is_written_is_read_back(spec: TensorSpec) -> None:
    assert parse_tensor(str(spec)) == spec


@given(tensor_specs(), st.data())
def test_blanks_do_not_matter(spec: TensorSpec, data: st.DataObject) -> None:
    spaced = "".join(c + " " * data.draw(st.integers(0, 1)) if c in "[],<=" else c for c in str(spec))
    assert parse_tensor(f" {spaced} ") == spec


@given(tensor_specs(), st.integers(1, 3))
def test_what_is_drawn_is_what_is_written(spec: TensorSpec, batch_size: int) -> None:
    if any(dim is not None and dim > 4 for dim in spec.dims):
        spec = TensorSpec(spec.dtype, tuple(dim and dim % 4 + 1 for dim in spec.dims), spec.below, spec.name)
    tensor = spec.draw(batch_size)
    assert str(tensor.dtype) == f"torch.{spec.dtype}"
    assert tuple(tensor.shape) == tuple(batch_size if dim is None else dim for dim in spec.dims)
    if spec.dtype in INT_BITS:
        assert tensor.min() >= 0
        assert tensor.max() < (spec.below or 2)


def test_examples() -> None:
    assert parse_tensor("float32[B,3,224,224]") == TensorSpec("float32", (None, 3, 224, 224))
    assert parse_tensor("input_ids=int64[B,128]<50_257") == TensorSpec("int64", (None, 128), 50257, "input_ids")
    assert parse_tensor("bool[]") == TensorSpec("bool", ())
    assert parse_tensor("float32[1_000]").shape(3) == (1000,)


def test_without_a_bound_integers_are_0_and_1() -> None:
    assert set(parse_tensor("int64[B]").draw(200).tolist()) == {0, 1}
    assert parse_tensor("complex64[B,2]").draw(3).dtype is torch.complex64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--input '' is not DTYPE[DIM,...], for example"),
        ("float32", "--input 'float32' is not DTYPE[DIM,...], for example"),
        ("float32[B", "--input 'float32[B' is not DTYPE[DIM,...], for example"),
        ("float32[B]x", "--input 'float32[B]x' is not DTYPE[DIM,...], for example"),
        ("flaot32[B]", "there is no dtype 'flaot32'; did you mean 'float32'?"),
        ("f8[B]", "there is no dtype 'f8'; choose from"),
        ("float32[B,0]", "a dimension is a positive int, or B for the batch size, not '0'"),
        ("float32[B,-1]", "a dimension is a positive int, or B for the batch size, not '-1'"),
        ("float32[b]", "a dimension is a positive int, or B for the batch size, not 'b'"),
        ("float32[B,]", "a dimension is a positive int, or B for the batch size, not ''"),
        ("float32[B]<10", "only integers have a bound; drop <10"),
        ("bool[B]<2", "only integers have a bound; drop <2"),
        ("int64[B]<0", "the bound is a positive int, not '0'"),
        ("int64[B]<ten", "the bound is a positive int, not 'ten'"),
        ("int8[B]<129", "int8 holds no more than 127; use int64"),
        ("int64[B]<9223372036854775808", "int64 bounds end at 9223372036854775807"),
        ("1x=int64[B]", "'1x' cannot be a keyword of the model"),
        ("=int64[B]", "'' cannot be a keyword of the model"),
    ],
)
def test_faults_are_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tensor(text)
    assert message in str(caught.value)
    assert repr(text) in str(caught.value)


def test_the_option_is_named() -> None:
    with pytest.raises(UsageError, match=r"^--target 'x' is not"):
        parse_tensor("x", "--target")


def test_inputs_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="no --input has the batch size in its shape; write B for it"):
        parse_inputs(("float32[8,3]",))
    with pytest.raises(UsageError, match="--input x= is given twice"):
        parse_inputs(("x=float32[B]", "x=float32[B]"))
    assert len(parse_inputs(("float32[B]", "float32[4]", "y=int64[B]"))) == 3
