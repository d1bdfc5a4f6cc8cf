"""State bytes against closed forms, after two real steps on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from memprof.documents.optimizer_spec import parse_optimizer
from memprof.optimizers.registry import build_optimizer
from memprof.optimizers.state_bytes import StateReport, measure_state

SHAPES: dict[str, tuple[int, ...]] = {
    "embedding": (40, 16),
    "bias": (16,),
    "conv3x3": (12, 8, 3, 3),
    "conv1x1": (10, 6, 1, 1),
    "scale": (),
}
COUNT = len(SHAPES)
NUMEL = sum(math.prod(shape) for shape in SHAPES.values())


def factors(shape: tuple[int, ...]) -> int:
    """Adafactor's floats: row and column sums over the last two dimensions, or one per entry below rank 2."""
    if len(shape) < 2:
        return math.prod(shape)
    return math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]


def sm3_floats(shape: tuple[int, ...]) -> int:
    return sum(shape) if shape else 1


ADAFACTOR = 4 * sum(factors(shape) for shape in SHAPES.values()) + 4 * COUNT
SM3 = 4 * sum(sm3_floats(shape) for shape in SHAPES.values())
STEP = 4 * COUNT  # torch's step counters are float32 tensors on the CPU, one per parameter

CLOSED_FORMS = {
    "adam": 8 * NUMEL + STEP,
    "adam,amsgrad=true": 12 * NUMEL + STEP,
    "adam,fused=true": 8 * NUMEL + STEP,
    "adam,foreach=true": 8 * NUMEL + STEP,
    "adamw": 8 * NUMEL + STEP,
    "adagrad": 4 * NUMEL + STEP,
    "adadelta": 8 * NUMEL + STEP,
    "adafactor": ADAFACTOR,
    "adamax": 8 * NUMEL + STEP,
    "asgd": 4 * NUMEL + 3 * STEP,  # step, eta, mu
    "nadam": 8 * NUMEL + 2 * STEP,  # step, mu_product
    "radam": 8 * NUMEL + STEP,
    "rmsprop": 4 * NUMEL + STEP,
    "rmsprop,momentum=0.9": 8 * NUMEL + STEP,
    "rmsprop,momentum=0.9,centered=true": 12 * NUMEL + STEP,
    "rprop": 8 * NUMEL + STEP,
    "sgd": 0,
    "sgd,momentum=0.9": 4 * NUMEL,
    "sm3": SM3,
    "sm3,momentum=0.9": SM3 + 4 * NUMEL,
}


def step_twice(spec: str, parameters: dict[str, nn.Parameter]) -> StateReport:
    optimizer = build_optimizer(parse_optimizer(spec), parameters.items())
    for _ in range(2):
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return measure_state(optimizer, parameters.values())


def make(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.randn(shape, dtype=dtype)) for name, shape in shapes.items()}


@pytest.mark.parametrize(("spec", "expected"), CLOSED_FORMS.items())
def test_closed_form(spec: str, expected: int) -> None:
    assert step_twice(spec, make(SHAPES)).bytes == expected


def test_muon_is_one_matrix() -> None:
    assert step_twice("muon", make({"weight": (24, 16)})).bytes == 4 * 24 * 16


def test_sparse_adam_keeps_dense_moments() -> None:
    table = nn.Parameter(torch.randn(9, 5))
    optimizer = build_optimizer(parse_optimizer("sparseadam"), [("table", table)])
    for _ in range(2):
        table.grad = torch.sparse_coo_tensor([[1, 4]], torch.ones(2, 5), (9, 5), check_invariants=True)
        optimizer.step()
    assert measure_state(optimizer, [table]).bytes == 2 * table.nbytes


def test_adafactor_factors_nothing_of_a_1x1_convolution() -> None:
    shape = (64, 256, 1, 1)
    assert step_twice("adafactor", make({"conv": shape})).bytes == 8 * math.prod(shape) + 4


def test_1024_square_in_bytes_per_parameter() -> None:
    weight = {"weight": (1024, 1024)}
    figures = {spec: step_twice(spec, make(weight)).bytes / 2**20 for spec in ("adam", "adagrad", "adafactor", "sm3")}
    assert figures == pytest.approx({"adam": 8.0, "adagrad": 4.0, "adafactor": 8 / 1024, "sm3": 8 / 1024}, abs=1e-5)


def test_state_exists_before_the_first_step_only_where_it_does() -> None:
    parameters = make(SHAPES)
    reports = {
        name: measure_state(build_optimizer(parse_optimizer(name), parameters.items()), parameters.values())
        for name in ("adam", "adagrad")
    }
    assert reports["adam"] == StateReport(0, {}, {}, 0)
    assert reports["adagrad"].bytes == CLOSED_FORMS["adagrad"]


def test_state_dtype_follows_bf16_parameters_in_torch_but_not_in_sm3() -> None:
    adam = step_twice("adam", make({"weight": (8, 8)}, torch.bfloat16))
    assert adam.by_dtype == {"bfloat16": 2 * 2 * 64, "float32": 4}
    sm3 = step_twice("sm3", make({"weight": (8, 8)}, torch.bfloat16))
    assert sm3.by_dtype == {"float32": 4 * 16}


def test_step_counters_stay_on_the_cpu_when_the_parameters_do_not() -> None:
    weight = nn.Parameter(torch.empty(8, 8, device="meta"))
    optimizer = build_optimizer(parse_optimizer("adam,foreach=false"), [("weight", weight)])
    for _ in range(2):
        weight.grad = torch.empty_like(weight)
        optimizer.step()
    assert measure_state(optimizer, [weight]).device_bytes == {"cpu": 4, "meta": 2 * 4 * 64}


def test_fake_parameters_of_a_simulated_gpu() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        weight = nn.Parameter(torch.empty(512, 256, device="cuda"))
        optimizer = build_optimizer(parse_optimizer("adam,foreach=false"), [("weight", weight)])
        for _ in range(2):
            weight.grad = torch.empty_like(weight)
            optimizer.step()
        report = measure_state(optimizer, [weight])
    assert report.device_bytes == {"cpu": 4, "cuda:0": 2 * 4 * 512 * 256}
    assert report.tensors == 3


RESNET50 = {  # the same floats as in the closed forms above, and what real steps measured
    "sm3": (lambda shape: 4 * sm3_floats(shape), 0.41),
    "adagrad": (lambda shape: 4 * math.prod(shape) + 4, 97.49),
    "adafactor": (lambda shape: 4 * factors(shape) + 4, 121.5),
    "adam": (lambda shape: 8 * math.prod(shape) + 4, 194.99),
}


@pytest.mark.parametrize("spec", RESNET50)
def test_resnet50_figures_of_the_closed_forms(spec: str) -> None:
    """Adafactor's state exceeds Adagrad's: 47% of ResNet-50's parameters are in 1x1 convolutions."""
    from memprof.workloads.builtin.resnet50 import resnet50

    closed_form, mebibytes = RESNET50[spec]
    with torch.device("meta"):
        shapes = [tuple(parameter.shape) for parameter in resnet50().model().parameters()]
    assert sum(map(closed_form, shapes)) / 2**20 == pytest.approx(mebibytes, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["sm3", "adafactor"])
def test_resnet50_figures_are_what_real_steps_leave(spec: str) -> None:
    from memprof.workloads.builtin.resnet50 import resnet50

    closed_form, _ = RESNET50[spec]
    parameters = dict(resnet50().model().named_parameters())
    expected = sum(closed_form(tuple(parameter.shape)) for parameter in parameters.values())
    assert step_twice(spec, parameters).bytes == expected
