from __future__ import annotations

import inspect
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memprof.documents.optimizer_spec import parse_optimizer
from memprof.errors import UsageError
from memprof.optimizers.registry import (
    KNOWN_OPTIMIZERS,
    build_optimizer,
    check_options,
    find_known,
    resolve_class,
)
from memprof.optimizers.state_bytes import measure_state


def build(text: str, model: nn.Module | None = None) -> torch.optim.Optimizer:
    model = model or nn.Linear(4, 3, bias=False)
    return build_optimizer(parse_optimizer(text), model.named_parameters())


def message(text: str, model: nn.Module | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        build(text, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The table


def test_table_has_all_of_torch_optim_and_sm3() -> None:
    classes = {
        name: value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name != "Optimizer"
    }
    paths = [known.class_path for known in KNOWN_OPTIMIZERS.values()]
    known = {path.split(":")[1] for path in paths if path.startswith("torch.optim:")}
    assert known == set(classes) | ({"Muon"} if not hasattr(torch.optim, "Muon") else set())
    assert set(KNOWN_OPTIMIZERS) >= {name.lower() for name in known} | {"sm3"}


@pytest.mark.parametrize("name", [name for name, known in KNOWN_OPTIMIZERS.items() if not known.refusal])
def test_names_lead_to_their_class(name: str) -> None:
    factory = resolve_class(parse_optimizer(name))
    assert isinstance(factory, type)
    assert factory.__name__.lower() == name
    assert resolve_class(parse_optimizer(KNOWN_OPTIMIZERS[name].class_path)) is factory


@pytest.mark.parametrize("name", [name for name, known in KNOWN_OPTIMIZERS.items() if not known.refusal])
def test_published_state_formula(name: str) -> None:
    m, n = 64, 32
    weight = nn.Parameter(torch.randn(m, n))
    optimizer = build_optimizer(parse_optimizer(name), [("weight", weight)])
    for _ in range(2):
        weight.grad = torch.randn(m, n)
        weight.grad = weight.grad.to_sparse() if name == "sparseadam" else weight.grad
        optimizer.step()
    stated = re.match(r"(\d+)(\(m\+n\) B|)", KNOWN_OPTIMIZERS[name].state)
    assert stated
    expected = int(stated[1]) * ((m + n) if stated[2] else m * n)
    assert measure_state(optimizer, [weight]).bytes == pytest.approx(expected, abs=12)  # step counters


# Names and import paths


def test_unknown_name_suggests_the_nearest() -> None:
    assert "did you mean 'adagrad'?" in message("adagard")
    assert "pkg.mod:Class" in message("mystery")


def test_lbfgs_is_refused_under_both_names() -> None:
    for text in ("lbfgs", "torch.optim:LBFGS"):
        assert "closure" in message(text)
    with pytest.raises(UsageError, match="closure"):
        find_known(parse_optimizer("lbfgs"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("no_such_package.optim:X", "there is no module 'no_such_package.optim'"),
        ("torch.no_such_part:X", "there is no module 'torch.no_such_part'"),
        ("torch.optim:Adem", "torch.optim has no attribute 'Adem'"),
        ("torch.nn:Linear", "not a subclass of torch.optim.Optimizer"),
        ("torch.optim:__all__", "is a list, not an optimizer class"),
        ("missing_file.py:X", "no file missing_file.py"),
    ],
)
def test_wrong_import_paths(text: str, part: str) -> None:
    assert part in message(text)


def test_module_of_the_current_folder_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import torch\nclass Plain(torch.optim.SGD):\n    pass\n"
    (tmp_path / "local_plain_optimizer.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    for text in (
        "local_plain_optimizer:Plain",
        "local_plain_optimizer.py:Plain",
        f"{tmp_path}/local_plain_optimizer.py:Plain",
    ):
        assert type(build(text)).__name__ == "Plain"


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (
            "import a_library_that_is_not_there",
            "imports 'a_library_that_is_not_there', which is not installed",
        ),
        ("raise RuntimeError('no GPU\\nhere')", "no GPU here"),
        ("raise SystemExit(3)", "exits when it is imported"),
        ("x = (", "SyntaxError"),
    ],
)
def test_failure_inside_a_module_is_not_a_missing_module(
    source: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"broken_{abs(hash(source))}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    for text in (f"{module}:X", f"{tmp_path}/{module}.py:X"):
        said = message(text)
        assert part in said
        assert "there is no" not in said
        assert said.startswith(f"optimizer {text!r}: ")


# Options


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sgd,momentun=0.9", "did you mean 'momentum'?"),
        ("adam,params=1", "comes from the model"),
        ("sgd,nesterov=no", "'nesterov' is true or false, not 'no'"),
        ("adam,foreach=1", "'foreach' is true or false, not 1"),
        ("adam,lr=fast", "'lr' is a number, not 'fast'"),
        ("adam,eps=true", "'eps' is a number, not True"),
        ("adam,lr=(1,2)", "'lr' is a number"),
        ("adam,betas=0.9", "is a tuple such as (0.9,0.999)"),
    ],
)
def test_options_are_checked_without_building(text: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(parse_optimizer(text))
    assert part in str(caught.value)


def test_good_options_pass_and_arrive() -> None:
    check_options(parse_optimizer("adafactor,eps=(none,1e-3),foreach=none"))
    group = build("adam,lr=0.5,betas=(0.8,0.9),fused=true").param_groups[0]
    assert (group["lr"], group["betas"], group["fused"]) == (0.5, (0.8, 0.9), True)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("adam,lr=-1", "ValueError: Invalid learning rate: -1"),
        ("adam,foreach=true,fused=true", "`fused` and `foreach` cannot be `True` together"),
        ("sgd,nesterov=true", "Nesterov momentum requires a momentum"),
    ],
)
def test_constructor_errors_keep_their_own_words(text: str, part: str) -> None:
    assert part in message(text)


class Recorder(torch.optim.SGD):
    """Demands `lr` and `rank`, and keeps what it was given."""

    def __init__(
        self,
        named_parameters: Any,
        lr: float,
        rank: int,
        momentum_dtype: torch.dtype | None = None,
        second_dtype: Any = torch.float32,
        kind: str = "a",
        either_dtype: torch.dtype | str = "auto",
        **extra: Any,
    ) -> None:
        self.named = list(named_parameters)
        self.given = (lr, rank, momentum_dtype, second_dtype, kind, either_dtype, extra)
        super().__init__([parameter for _, parameter in self.named], lr=lr)


HERE = f"{__file__}:Recorder"


def test_lr_default_dtypes_names_and_open_ended_options() -> None:
    dtypes = "momentum_dtype=bfloat16,second_dtype=torch.int8,either_dtype=int16"
    optimizer: Any = build(f"{HERE},rank=4,{dtypes},kind=float16,x=(1,2)")
    expected = (1e-3, 4, torch.bfloat16, torch.int8, "float16", torch.int16, {"x": (1, 2)})
    assert optimizer.given == expected
    assert [name for name, _ in optimizer.named] == ["weight"]
    assert "auto" in build(f"{HERE},rank=4,either_dtype=auto").given  # type: ignore[attr-defined]


def test_demanded_options_and_dtype_mistakes() -> None:
    assert "requires rank; write" in message(HERE)
    assert "did you mean 'bfloat16'?" in message(f"{HERE},rank=1,momentum_dtype=bfloat")
    assert "comes from the model" in message(f"{HERE},rank=1,named_parameters=1")


def two_optimizers(params: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(params), lr=lr)


def no_optimizer(params: Any) -> list[Any]:
    return list(params)


def test_a_function_may_build_the_optimizer() -> None:
    assert build(f"{__file__}:two_optimizers,lr=0.25").param_groups[0]["lr"] == 0.25
    assert "returned a list" in message(f"{__file__}:no_optimizer")


class ScheduleFree(torch.optim.SGD):
    """Has a mode, as modules do, and is born in neither."""

    def train(self) -> None:
        self.mode = "train"


def test_an_optimizer_with_modes_is_put_into_train_mode() -> None:
    assert build(f"{__file__}:ScheduleFree").mode == "train"  # type: ignore[attr-defined]


class TooBig(torch.optim.SGD):
    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        torch.empty(2**60)


def test_running_out_of_memory_in_a_constructor_is_no_users_mistake() -> None:
    with pytest.raises(RuntimeError, match="allocate"):
        build(f"{__file__}:TooBig")


# Parameters


def test_frozen_parameters_are_left_out_and_tied_ones_taken_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    second.bias.requires_grad_(False)
    model = nn.Sequential(first, second)
    optimizer = build_optimizer(parse_optimizer("sgd"), model.named_parameters(remove_duplicate=False))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(first.weight), id(first.bias)]


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)])
def test_nothing_to_train(model: nn.Module) -> None:
    assert "no parameter that requires a gradient" in message("adam", model)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon_names_the_parameter_it_cannot_train() -> None:
    text = message("muon", nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4)))
    assert "'0.weight' (4x3x3x3) is not one, nor are 2 more" in text
    assert build("muon", nn.Linear(4, 3, bias=False)).param_groups[0]["lr"] == 1e-3


def test_muon_before_torch_2_9(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    assert "came with torch 2.9" in message("muon")


@pytest.mark.parametrize("name", ["adam", "sm3", "adagrad"])
def test_groups_hold_plain_parameters(name: str) -> None:
    model = nn.Linear(4, 3)
    assert all(isinstance(p, nn.Parameter) for p in build(name, model).param_groups[0]["params"])
    assert math.isfinite(build(name, model).param_groups[0]["lr"])
