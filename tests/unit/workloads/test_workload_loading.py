"""`file.py:attr` and `package.module:attr`: what is found, when it is called, how it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.workloads.loader import LoadedWorkload, load_workload

HEAD = """
import torch
from torch import nn
from memprof import Workload

class Net(nn.Module):
    def __init__(self, width: int = 4, bias: bool = True):
        super().__init__()
        self.layer = nn.Linear(width, 3, bias=bias)

    def forward(self, x):
        return self.layer(x)

def workload(width):
    def loss(model, batch): return model(batch).mean()
    return Workload(model=lambda: Net(width), batch=lambda n: torch.randn(n, width), loss=loss, scale="width")
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a file of the user's, and forget what it imported afterwards."""
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)

    def write(text: str, name: str = "train.py", head: str = HEAD) -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(head + dedent(text))
        return name

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def load(model: str, **others: Any) -> LoadedWorkload:
    return load_workload(WorkloadSpec(model=model, **others))


def plain(model: str, **knobs: Any) -> LoadedWorkload:
    return load(model, knobs=knobs, inputs=("float32[B,4]",), target="int64[B]<3")


def fails(message: str, model: str, **others: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load(model, **others).workload.model()
    text = str(caught.value)
    assert message in text
    assert "\n" not in text


def test_a_function_that_gives_a_workload(write: Write) -> None:
    write("def build(width: int = 8, name='x'): return workload(width)")
    loaded = load("train.py:build", knobs={"width": 5})
    assert (loaded.name, loaded.knobs, loaded.scale) == ("train.py:build", {"width": 5, "name": "x"}, "width")
    model = loaded.workload.model()
    assert loaded.workload.loss(model, loaded.workload.batch(7)).shape == ()
    assert loaded.workload.batch(7).shape == (7, 5)


def test_a_workload_itself(write: Write) -> None:
    write("ready = Workload(model=Net, batch=lambda n: torch.randn(n, 4), loss=lambda m, b: m(b).sum())")
    loaded = load("train.py:ready")
    assert (loaded.knobs, loaded.scale) == ({}, None)
    assert loaded.workload.batch(2).shape == (2, 4)
    fails(
        "train.py:ready is already built and takes no knobs: drop --set width",
        "train.py:ready",
        knobs={"width": 2},
    )


def test_a_class_is_built_when_it_is_needed(write: Write) -> None:
    write(
        """
        built = []
        class Counted(Net):
            def __init__(self, width=4):
                super().__init__(width)
                built.append(1)
        """
    )
    loaded = plain("train.py:Counted")
    built = sys.modules["train"].built
    assert built == []
    assert loaded.workload.model() is not loaded.workload.model()
    assert built == [1, 1]


def test_an_annotated_function_is_called_when_it_is_needed(write: Write) -> None:
    write("built = []\ndef build(width: int = 4) -> nn.Module:\n    built.append(1)\n    return Net(width)")
    loaded = plain("train.py:build")
    assert sys.modules["train"].built == []
    loaded.workload.model()
    assert sys.modules["train"].built == [1]


def test_a_function_that_had_to_be_called_hands_its_module_over_once(write: Write) -> None:
    write("built = []\ndef build(width=4):\n    built.append(1)\n    return Net(width)")
    torch.manual_seed(3)
    loaded = plain("train.py:build")
    first = loaded.workload.model()
    assert sys.modules["train"].built == [1]
    after = torch.rand(1)
    torch.manual_seed(3)
    again = loaded.workload.model()
    assert sys.modules["train"].built == [1, 1]
    assert torch.equal(first.layer.weight, again.layer.weight)  # type: ignore[union-attr,arg-type]
    assert torch.equal(after, torch.rand(1))  # as if it had been built only when it was asked for


def test_another_seed_or_a_mode_builds_it_again(write: Write) -> None:
    write("built = []\ndef build(width=4):\n    built.append(1)\n    return Net(width)")
    loaded = plain("train.py:build")
    torch.manual_seed(4)
    loaded.workload.model()
    assert sys.modules["train"].built == [1, 1]
    loaded = plain("train.py:build")
    with FakeTensorMode():
        model = loaded.workload.model()
    assert all(isinstance(p, FakeTensor) for p in model.parameters())
    loaded = plain("train.py:build")
    with torch.device("meta"):
        model = loaded.workload.model()
    assert all(p.is_meta for p in model.parameters())


def test_one_module_object_is_trained_once(write: Write) -> None:
    write("net = Net()\nnet.tied = net.layer\nnet.register_buffer('mean', torch.zeros(3))")
    loaded = plain("train.py:net")
    with FakeTensorMode():
        fake = loaded.workload.model()
        assert all(isinstance(t, FakeTensor) for t in (*fake.parameters(), *fake.buffers()))
        loaded.workload.loss(fake, loaded.workload.batch(2)).backward()
    assert fake.tied is fake.layer
    assert loaded.workload.model() is sys.modules["train"].net
    with pytest.raises(UsageError, match="is one module object; name its class or a function"):
        loaded.workload.model()


def test_attributes_may_have_dots_and_callables_may_be_objects(write: Write) -> None:
    write(
        """
        import functools
        class Models:
            @staticmethod
            def small(width=4): return Net(width)
        partial = functools.partial(Net, width=4)
        """
    )
    assert plain("train.py:Models.small").knobs == {"width": 4}
    assert plain("train.py:partial", bias=False).knobs == {"width": 4, "bias": False}


def test_a_file_in_a_package_is_imported_as_part_of_it(write: Write) -> None:
    write("", "proj_a/__init__.py", head="")
    write("WIDTH = 4", "proj_a/sizes.py", head="")
    write("from .sizes import WIDTH\ndef build(width=WIDTH): return workload(width)", "proj_a/model.py")
    assert load("proj_a/model.py:build").knobs == {"width": 4}
    assert load("proj_a.model:build").knobs == {"width": 4}
    assert load(str(Path("proj_a/model.py").resolve()) + ":build").knobs == {"width": 4}


def test_a_neighbour_is_imported_from_the_files_own_folder(write: Write) -> None:
    write("WIDTH = 6", "deep/neighbour_b.py", head="")
    write("from neighbour_b import WIDTH\ndef build(width=WIDTH): return workload(width)", "deep/model_b.py")
    assert load("deep/model_b.py:build").knobs == {"width": 6}


@pytest.mark.parametrize("name", ["types.py", "my-model.py", "v1.2.py"])
def test_a_file_with_a_taken_or_odd_name_is_imported(write: Write, name: str) -> None:
    write("def build(width=4): return workload(width)", name)
    before = sys.modules["types"]
    assert load(f"{name}:build").knobs == {"width": 4}
    assert sys.modules["types"] is before


def test_the_working_folder_is_on_the_path(write: Write) -> None:
    write("def build(width=4): return workload(width)", "model_c.py")
    assert load("model_c:build").knobs == {"width": 4}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("gtp2", "there is no built-in workload 'gtp2'; did you mean 'gpt2'?"),
        ("train.py", "'train.py' names no attribute: write train.py:NAME"),
        ("pkg.models", "'pkg.models' names no attribute: write pkg.models:NAME"),
        (":build", "':build' must be path/to/file.py:attr or package.module:attr"),
        ("train.py:", "'train.py:' must be path/to/file.py:attr or package.module:attr"),
        ("nothing.py:build", "there is no file nothing.py"),
        ("no_such_module:build", "there is no module 'no_such_module'"),
        ("torch.no_such:build", "there is no module 'torch.no_such'"),
        ("some-file:build", "'some-file' is neither a .py file nor a module"),
        ("train.py:biuld", "train.py has no attribute 'biuld'; did you mean 'build'?"),
        ("train.py:CONFIG", "train.py:CONFIG is a dict; name a Workload"),
        ("train.py:batched", "train.py:batched takes batch_size, which is not a knob"),
        ("train.py:needs", "train.py:needs needs a value for depth: add --set depth=VALUE"),
        ("train.py:configured", "needs a value for config: write a function that builds the model, with its config"),
        ("train.py:position", "train.py:position takes width by position only"),
        (
            "train.py:gives_dict",
            "train.py:gives_dict gives a dict; it must give a memprof.Workload or an nn.Module",
        ),
        ("train.py:raises", "train.py:raises raised ValueError: too wide (train.py:"),
        ("train.py:exits", "train.py:exits raised SystemExit: 3 (train.py:"),
        ("train.py:Raises", "building the model of train.py:Raises raised RuntimeError: no luck (train.py:"),
        (
            "train.py:scaled",
            "train.py:scaled names the scale knob 'widht', which it does not take; did you mean",
        ),
    ],
)
def test_faults_are_one_sentence(write: Write, model: str, message: str) -> None:
    write(
        """
        CONFIG = {}
        def build(width=4): return workload(width)
        def batched(batch_size): return workload(4)
        def needs(depth): return workload(4)
        class Config: pass
        def configured(config: Config): return workload(4)
        def position(width, /): return workload(4)
        def gives_dict(): return {}
        def raises(): raise ValueError("too\\nwide")
        def exits(): raise SystemExit(3)
        class Raises(nn.Module):
            def __init__(self):
                raise RuntimeError("no luck")
        def scaled(width=4):
            from dataclasses import replace
            return replace(workload(width), scale="widht")
        def make_batch(n): return torch.randn(n, 4)
        """
    )
    fails(message, model)


def test_the_line_is_the_users_own(write: Write) -> None:
    write("\ndef build():\n    return nn.Linear(2, 'x')\n", head="from torch import nn\n")
    fails("(train.py:4)", "train.py:build")
    write(
        "def make_batch(n):\n    raise KeyError(n)\n\nnet = nn.Linear(2, 2)",
        "other.py",
        head="from torch import nn\n",
    )
    with pytest.raises(UsageError, match=r"^making a batch for other.py:net raised KeyError: 7 \(other.py:3\)$"):
        load("other.py:net").workload.batch(7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(:", "importing train.py raised SyntaxError: invalid syntax (train.py:1)"),
        ("1/0", "importing train.py raised ZeroDivisionError: division by zero (train.py:1)"),
        (
            "import no_such_thing",
            "train.py imports 'no_such_thing', which is not installed (ModuleNotFoundError: ",
        ),
        ("import torch.nope", "train.py imports 'torch.nope', which is not installed"),
        (
            "import sys; sys.exit(1)",
            "train.py exits when it is imported; put its script part under if __name__",
        ),
        ("from torch import nope", "importing train.py raised ImportError: cannot import name 'nope'"),
    ],
)
def test_a_file_that_cannot_be_imported(write: Write, text: str, message: str) -> None:
    fails(message, write(text, head="") + ":build")


def test_memory_that_runs_out_is_no_mistake_of_the_users(write: Write) -> None:
    write("def build(): raise MemoryError")
    with pytest.raises(MemoryError):
        load("train.py:build")
    write("class Big(nn.Module):\n    def __init__(self): super().__init__(); torch.empty(1 << 60)", "big.py")
    with pytest.raises(RuntimeError, match="allocate memory"):
        plain("big.py:Big").workload.model()


def test_knobs_of_a_function(write: Write) -> None:
    write(
        """
        def build(width: int = 4, rate: float = 0.1, *, flag: bool = False, size: str = "s", other=None):
            return workload(width)
        def opened(width=4, **more): return workload(width)
        """,
        head="from __future__ import annotations\n" + HEAD,
    )
    given: dict[str, Any] = {"width": 3, "rate": 1, "flag": True, "size": 8, "other": "x"}
    assert load("train.py:build", knobs=given).knobs == {**given, "rate": 1.0, "size": "8"}
    assert load("train.py:opened", knobs={"extra": 3}).knobs == {"width": 4, "extra": 3}
    fails("train.py:build has no knob 'widht'; did you mean 'width'?", "train.py:build", knobs={"widht": 3})
    fails("the knob width of train.py:build is an int, not 'x'", "train.py:build", knobs={"width": "x"})
    fails("the knob flag of train.py:build is true or false, not 'no'", "train.py:build", knobs={"flag": "no"})
    fails("the knob rate of train.py:build is a float, not True", "train.py:build", knobs={"rate": True})


def test_inputs_go_with_plain_modules_alone(write: Write) -> None:
    write("def build(width=4): return workload(width)")
    fails("train.py:build has its own batches: drop --input", "train.py:build", inputs=("float32[B]",))
    fails("train.py:build has its own batches: drop --target", "train.py:build", target="int64[B]")
    fails("mlp is a built-in and makes its own batches: drop --input", "mlp", inputs=("float32[B]",))
