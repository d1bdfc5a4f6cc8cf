"""Plain modules: the batch and the loss that go with them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.workloads.loader import LoadedWorkload, load_workload
from memprof.workloads.plain_module import compare, default_loss

HEAD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 4, classes: int = 3):
        super().__init__()
        self.layer = nn.Linear(width, classes)

    def forward(self, x, scale=None):
        y = self.layer(x)
        return y if scale is None else y * scale
"""

Write = Callable[[str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> None:
        (tmp_path / "plain_net.py").write_text(HEAD + text)

    yield write
    sys.modules.pop("plain_net", None)


def load(**others: Any) -> LoadedWorkload:
    return load_workload(WorkloadSpec(model="plain_net.py:Net", **others))


def train(loaded: LoadedWorkload, batch_size: int = 5) -> Tensor:
    model = loaded.workload.model()
    loss = loaded.workload.loss(model, loaded.workload.batch(batch_size))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    return loss


def test_inputs_by_position_and_by_keyword(write: Write) -> None:
    write("")
    loaded = load(inputs=("float32[B,4]", "scale=float32[B,1]"), target="int64[B]<3")
    batch = loaded.workload.batch(5)
    assert batch["args"][0].shape == (5, 4)
    assert batch["kwargs"]["scale"].shape == (5, 1)
    assert batch["target"].max() < 3
    model = loaded.workload.model()
    expected = F.cross_entropy(model(batch["args"][0], batch["kwargs"]["scale"]), batch["target"])
    assert torch.equal(loaded.workload.loss(model, batch), expected)


def test_float_targets_of_the_same_shape_are_squared_errors(write: Write) -> None:
    write("")
    assert train(load(inputs=("float32[B,4]",), target="float32[B,3]")).shape == ()


@pytest.mark.parametrize(
    "body",
    [
        "return torch.randn(n, 4), torch.zeros(n, dtype=torch.long)",
        "return {'x': torch.randn(n, 4), 'target': torch.zeros(n, dtype=torch.long)}",
        "return {'x': torch.randn(n, 4)}, torch.zeros(n, dtype=torch.long)",
        "return [(torch.randn(n, 4), torch.ones(1)), torch.zeros(n, dtype=torch.long)]",
    ],
)
def test_make_batch_beside_the_model(write: Write, body: str) -> None:
    write(f"\ndef make_batch(n):\n    {body}\n")
    assert train(load()).shape == ()


def test_make_batch_is_given_the_models_knobs(write: Write) -> None:
    write("\ndef make_batch(batch_size, width=4, other=1): return torch.randn(batch_size, width * other)\n")
    assert load(knobs={"width": 6}).workload.batch(2).shape == (2, 6)


def test_a_loss_beside_the_model(write: Write) -> None:
    write("\ndef make_batch(n): return torch.ones(n, 4)\ndef loss(model, batch): return model(batch).sum() * 0 + 7\n")
    assert train(load()) == 7


def test_inputs_come_before_make_batch(write: Write) -> None:
    write("\ndef make_batch(n): raise RuntimeError\n")
    assert train(load(inputs=("float32[B,4]",), target="int64[B]<3")).shape == ()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "plain_net.py:Net is a plain module: say what it takes with --input 'float32[B,3,224,224]'"),
        ("", {"target": "int64[B]"}, "plain_net.py:Net is a plain module: say what it takes with --input"),
        ("", {"inputs": ("float32[4]",)}, "no --input has the batch size"),
        (
            "",
            {"inputs": ("float32[B,4]",), "target": "y=int64[B]"},
            "--target goes to the loss, not to the model",
        ),
        (
            "",
            {"inputs": ("float32[B,4]",), "target": "int64[B]<4"},
            "tells 3 classes apart, and --target draws from 4",
        ),
        ("", {"inputs": ("float32[B,4]",)}, "the model gives float32[5,3] and no loss: add --target"),
        (
            "",
            {"inputs": ("float32[B,4]",), "target": "float32[B]"},
            "the output float32[5,3] and the target float32[5] fit",
        ),
        (
            "make_batch = 3",
            {},
            "make_batch beside plain_net.py:Net must be a function make_batch(batch_size), not an int",
        ),
        ("make_batch = lambda: 3", {}, "takes nothing; it must take the batch size"),
        ("make_batch = lambda n: 3", {}, "make_batch gives an int; it must give a tensor"),
        ("make_batch = lambda n: 3", {"target": "int64[B]"}, "--target goes with --input"),
        (
            "loss = nn.MSELoss()",
            {"inputs": ("float32[B,4]",)},
            "must be a function loss(model, batch), not a MSELoss",
        ),
        (
            "",
            {"inputs": ("float32[B,4]",), "knobs": {"widht": 3}},
            "has no knob 'widht'; did you mean 'width'?",
        ),
    ],
)
def test_faults_are_one_sentence(write: Write, text: str, options: dict[str, Any], message: str) -> None:
    write(text)
    with pytest.raises(UsageError) as caught:
        train(load(**options))
    assert message in str(caught.value)


class Gives(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x.mean(),
        lambda x: {"loss": x.mean(), "logits": x},
        lambda x: SimpleNamespace(loss=x.mean(), logits=x),
        lambda x: (x, x.mean()),
        lambda x: (x.mean(), x, None),
    ],
)
def test_a_loss_in_the_output_is_taken(wrap: Callable[[Tensor], Any]) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(default_loss(Gives(wrap), x), x.mean())


def test_a_loss_that_is_left_over_from_training_at_import_is_no_loss_function(write: Write) -> None:
    write("loss = Net()(torch.randn(2, 4)).mean()")
    train(load(inputs=("float32[B,4]",), target="int64[B]<3"))


def test_a_file_that_reads_arguments_when_it_is_imported_finds_none(write: Write) -> None:
    before = list(sys.argv)
    write("import sys; assert sys.argv == ['plain_net.py'], sys.argv")
    load(inputs=("float32[B,4]",), target="int64[B]<3")
    assert sys.argv == before


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, None),
        lambda x: {"logits": x},
        lambda x: SimpleNamespace(loss=None, logits=x),
    ],
)
def test_an_output_without_a_loss_is_compared(wrap: Callable[[Tensor], Any]) -> None:
    x, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(default_loss(Gives(wrap), (x, target)), F.cross_entropy(x, target))


def test_an_output_that_is_no_tensor() -> None:
    with pytest.raises(UsageError, match="the model gives a str, not a tensor"):
        default_loss(Gives(lambda x: "no"), torch.randn(2))


def test_the_classes_are_last_in_language_models_and_second_in_images() -> None:
    tokens, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    assert torch.allclose(compare(tokens, labels), F.cross_entropy(tokens.transpose(1, 2), labels))
    pixels, mask = torch.randn(2, 7, 4, 6), torch.randint(7, (2, 4, 6))
    assert torch.equal(compare(pixels, mask), F.cross_entropy(pixels, mask))
    with pytest.raises(UsageError, match="the model tells 7 classes apart, and --target draws from 9: write <7"):
        compare(pixels, mask, classes=9)
