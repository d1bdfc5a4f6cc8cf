from __future__ import annotations

from pathlib import Path

import pytest

from memprof.documents.recipe import Recipe
from memprof.gate.baseline import load_baseline
from memprof.gate.config import read_config
from memprof.gate.config_file import find_config
from tests.cli.conftest import Command
from tests.comparisons import default_runs, make_broken_run, make_comparison, make_run


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    runs = [make_run("adam", 800), make_run("sm3,momentum=0.9", 8), make_broken_run("sgd", "failed", "it [broke]")]
    recipe = Recipe(precision="bf16", clip_grad=1.5)
    make_comparison(*runs, recipe=recipe).save(tmp_path / "result.json")
    return tmp_path


def test_budgets_are_written_with_the_figures_they_rest_on(inside: Command, saved: Path) -> None:
    done = inside("gate", "init", "result.json", "--name", "pretrain")
    assert done.returncode == 0
    left_out, wrote = done.stderr.splitlines()
    assert left_out == "left out: sgd: it [broke]"
    assert wrote.startswith("wrote the budget 'pretrain' to memprof.toml and its figures to memprof-baseline.json;")
    text = (saved / "memprof.toml").read_text()
    assert "# Now: adam 1.13 GiB; sm3,momentum=0.9 1.13 GiB." in text
    assert "# Every knob is fixed here; take out those whose default in the model's code is to count." in text
    (budget,) = read_config(find_config(saved)).budgets
    assert budget.optimizers == ("adam", "sm3,momentum=0.9")
    assert (budget.settings.batch_size, budget.settings.knobs) == (2, {"seq_len": 128, "n_layer": 12})
    assert (budget.recipe.precision, budget.recipe.clip_grad) == ("bf16", 1.5)
    assert [limit.text for limit in budget.limits] == ["+0%", "1.3 GiB", "+2%"]
    baseline = load_baseline(saved / "memprof-baseline.json")
    assert baseline is not None
    assert set(baseline.entries["pretrain"]) == {"adam", "sm3,momentum=0.9"}


def test_a_second_entry_is_added_and_the_first_stays(inside: Command, saved: Path) -> None:
    assert inside("gate", "init", "result.json").returncode == 0
    before = (saved / "memprof.toml").read_text()
    assert inside("gate", "init", "result.json", "--name", "second").returncode == 0
    after = (saved / "memprof.toml").read_text()
    assert after.startswith(before.rstrip())
    assert [budget.name for budget in read_config(find_config(saved)).budgets] == ["gpt2", "second"]
    baseline = load_baseline(saved / "memprof-baseline.json")
    assert baseline is not None
    assert set(baseline.entries) == {"gpt2", "second"}
    done = inside("gate", "init", "result.json", "--name", "second")
    assert done.returncode == 2
    assert "memprof.toml has a budget 'second' already" in done.stderr
    assert (saved / "memprof.toml").read_text() == after


def test_pyproject_takes_the_entry_where_it_is_named(inside: Command, saved: Path) -> None:
    (saved / "pyproject.toml").write_text('[project]\nname = "x"  # kept\n')
    assert inside("gate", "init", "result.json", "--config", "pyproject.toml").returncode == 0
    text = (saved / "pyproject.toml").read_text()
    assert text.startswith('[project]\nname = "x"  # kept\n')
    assert "[tool.memprof.budgets.gpt2]" in text
    assert not (saved / "memprof.toml").exists()
    # From here on it is the configuration that is found.
    assert inside("gate", "init", "result.json", "--name", "two").returncode == 0
    assert "[tool.memprof.budgets.two]" in (saved / "pyproject.toml").read_text()


def test_models_are_named_from_where_the_configuration_is(inside: Command, saved: Path) -> None:
    (saved / "sub").mkdir()
    comparison = make_comparison(*default_runs())
    workload = comparison.workload.model_copy(update={"model": "train.py:build"})
    comparison.model_copy(update={"workload": workload}).save(saved / "r.json")
    assert inside("gate", "init", "r.json", "--config", "sub/memprof.toml").returncode == 0
    text = (saved / "sub" / "memprof.toml").read_text()
    assert "[budgets.build]" in text
    assert 'model = "../train.py:build"' in text
    baseline = load_baseline(saved / "sub" / "memprof-baseline.json")
    assert baseline is not None
    assert baseline.entries["build"]["adam"].setup.model == "../train.py:build"


@pytest.mark.parametrize(
    ("content", "code", "sentence"),
    [
        ("budgets = {}\n", 2, "memprof.toml"),
        ("[budgets.x]\n", 2, "lacks 'model'"),
        ("[budgets\n", 2, "memprof.toml:1: not TOML"),
    ],
)
def test_a_file_that_takes_no_entry_stays_as_it_is(
    inside: Command, saved: Path, content: str, code: int, sentence: str
) -> None:
    (saved / "memprof.toml").write_text(content)
    done = inside("gate", "init", "result.json")
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert (saved / "memprof.toml").read_text() == content
    assert not (saved / "memprof-baseline.json").exists()


def test_nothing_finished_is_no_budget(inside: Command, saved: Path) -> None:
    make_comparison(make_broken_run("sgd", "oom", "too large")).save(saved / "bad.json")
    done = inside("gate", "init", "bad.json")
    assert done.returncode == 3
    assert not (saved / "memprof.toml").exists()
    assert inside("gate", "init", "none.json").returncode == 2
    assert inside("gate", "init", "result.json", "--config", "none/memprof.toml").returncode == 2
