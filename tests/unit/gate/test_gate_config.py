from __future__ import annotations

from pathlib import Path

import pytest

from memprof.errors import ExitCode, MemprofError, UsageError
from memprof.gate.config_file import find_config
from tests.gates import budget_of, config_of

ENTRY = '[budgets.small]\nmodel = "gpt2"\n'


def test_the_example_of_the_design_reads() -> None:
    config = config_of(
        """
[tool.memprof.budgets.pretrain-small]
model = "train.py:small_gpt"
knobs = { n_layers = 12 }
batch_size = 8
optimizers = ["sm3", "Adam, lr=1e-3"]
device = "rtx-4090"
precision = "amp-bf16"
peak_allocated_bytes = ["20 GiB", "+2%"]
state_bytes = "1 GiB"
max_batch_size = 16
level = "error"
message = "talk to the training team before raising this"
""",
        "pyproject.toml",
    )
    (budget,) = config.budgets
    assert budget.line == 2
    assert budget.optimizers == ("sm3", "adam,lr=0.001")
    assert budget.recipe.precision == "amp-bf16"
    assert [limit.text for limit in budget.limits] == ["1 GiB", "20 GiB", "+2%", "16"]
    assert {limit.message for limit in budget.limits} == {"talk to the training team before raising this"}
    assert budget.needs_fit
    assert config.baseline == Path("memprof-baseline.json")


def test_an_entry_overrides_the_defaults_key_by_key() -> None:
    config = config_of(
        'baseline = "ci/accepted.json"\n[defaults]\nmodel = "gpt2"\nbatch_size = 4\nstate_bytes = "1 GiB"\n'
        '[budgets.a]\n[budgets.b]\nbatch_size = 2\nstate_bytes = []\nprecision = "bf16"\n'
    )
    a, b = config.budgets
    assert (a.settings.batch_size, b.settings.batch_size) == (4, 2)
    assert (len(a.limits), len(b.limits)) == (1, 0)
    assert b.recipe.precision == "bf16"
    assert config.baseline == Path("ci/accepted.json")


def test_an_entry_may_train_over_several_ranks() -> None:
    budget = budget_of("strategy = 'fsdp'\nworld_size = 4")
    assert (budget.recipe.strategy, budget.recipe.world_size) == ("fsdp", 4)


def test_a_script_takes_of_the_defaults_what_describes_no_model() -> None:
    config = config_of(
        """
        [defaults]
        model = "gpt2"
        batch_size = 4
        precision = "bf16"
        device = "rtx-4090"
        max_batch_size = 8
        peak_allocated_bytes = "20 GiB"
        [budgets.model]
        [budgets.script]
        script = "train.py --name='my run' --batch_size=12"
        steps = 5
        [budgets.module]
        script = "-m package.train 7"
        optimizers = ["as-is", "sm3@1"]
        """
    )
    model, script, module = config.budgets
    assert (model.script, model.settings.batch_size, model.recipe.precision, len(model.limits)) == (None, 4, "bf16", 2)
    assert (script.script.path, script.script.arguments) == ("train.py", ("--name=my run", "--batch_size=12"))
    assert (script.steps, script.optimizers, script.settings.device) == (5, ("as-is",), "rtx-4090")
    assert [limit.metric.name for limit in script.limits] == ["peak_allocated_bytes"]
    assert not script.needs_fit
    assert (module.script.path, module.script.module, module.script.arguments) == (None, "package.train", ("7",))
    assert (module.steps, module.optimizers) == (None, ("as-is", "sm3@1"))


def test_limits_at_level_off_are_left_out_and_entries_at_level_off_are_not_run() -> None:
    config = config_of(
        f'{ENTRY}state_bytes = {{ limit = "1 GiB", level = "off" }}\n[budgets.other]\nmodel = "mlp"\nlevel = "off"\n'
    )
    assert config.budgets[0].limits == ()
    assert [budget.name for budget in config.select([])] == ["small"]
    assert config.select(["other"]) == ()


def test_entries_are_selected_by_pattern() -> None:
    config = config_of('[defaults]\nmodel = "gpt2"\n[budgets.ci-a]\n[budgets.ci-b]\n[budgets.big]\n')
    assert [budget.name for budget in config.select(["ci-*"])] == ["ci-a", "ci-b"]
    with pytest.raises(UsageError, match="no budget is called 'bigg'; did you mean 'big'"):
        config.select(["bigg"])


def test_resident_memory_is_measured_three_times_unless_told_otherwise() -> None:
    assert budget_of('process_bytes = "1 GiB"').repeats == 3
    assert budget_of('process_bytes = "1 GiB"', "repeats = 5").repeats == 5
    assert budget_of('state_bytes = "1 GiB"').repeats == 1


def test_the_capacity_is_a_size() -> None:
    assert budget_of('capacity = "20 GiB"').capacity_bytes == 20 * 2**30
    assert budget_of().capacity_bytes is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            f"{ENTRY}peak_alocated_bytes = '1 GiB'",
            "memprof.toml:3: [budgets.small] has no key 'peak_alocated_bytes'",
        ),
        ("[defaults]\nbatchsize = 3", "memprof.toml:2: [defaults] has no key 'batchsize'; did you mean 'batch_size'?"),
        ("[budget.small]\nmodel = 'x'", "there is no key 'budget'; did you mean 'budgets'?"),
        ("[budgets.small]", "memprof.toml:1: [budgets.small] lacks 'model' or 'script'"),
        (
            '[budgets.small]\nmodel = "gpt2"\nscript = "train.py"',
            "memprof.toml:3: [budgets.small] has a 'model' and a 'script'; keep one",
        ),
        (
            '[budgets.small]\nscript = "train.py"\nbatch_size = 3',
            "memprof.toml:3: [budgets.small] has the key 'batch_size', which describes a model",
        ),
        (
            '[budgets.small]\nscript = "train.py \'x"',
            'memprof.toml:2: [budgets.small] "train.py \'x" is no command line',
        ),
        ('[budgets.small]\nscript = "-m"', "memprof.toml:2: [budgets.small] '-m' names no module"),
        ('[budgets.small]\nscript = ""', "memprof.toml:2: [budgets.small] it names no script"),
        (f"{ENTRY}batch_size = '8'", "memprof.toml:3: [budgets.small] batch_size = '8': it should be a valid integer"),
        (f"{ENTRY}batch_size = 0", "should be greater than or equal to 1"),
        (f"{ENTRY}precision = 'fp8'", "memprof.toml:3: [budgets.small] precision = 'fp8'"),
        (
            f"{ENTRY}world_size = 2",
            "memprof.toml:1: [budgets.small]: world_size needs strategy ddp or fsdp, which say how the ranks share",
        ),
        (f"{ENTRY}level = 'warning'", "did you mean 'warn'?"),
        (f"{ENTRY}optimizers = []", "at least 1 item"),
        (f"{ENTRY}optimizers = 'adam'", """optimizers = 'adam': it should be a list: ["adam"]"""),
        (f"{ENTRY}optimizers = ['adam', 'Adam']", "names the optimizer 'adam' twice"),
        (f"{ENTRY}optimizers = ['adam,lr']", "memprof.toml:3: [budgets.small] optimizer 'adam,lr'"),
        (f"{ENTRY}capacity = '24'.", "memprof.toml:3: not TOML"),
        (f"{ENTRY}capacity = 'much'", "memprof.toml:3: [budgets.small] 'much' is not a size"),
        (f"{ENTRY}state_bytes = '1'", "memprof.toml:3: [budgets.small] state_bytes = 1 has no unit"),
        (f"{ENTRY}{ENTRY}", "memprof.toml:3: not TOML"),
        ("[budgets]\nsmall = 3", "it must be a table"),
        ("budgets = 3", "it must be a table"),
        ("baseline = 3", "it must be a path in quotes"),
        ("[budgets.'a b']\nmodel = 'x'", "a budget cannot be called 'a b'"),
        (f"{ENTRY}device = 'cpu'\npeak_reserved_bytes = '1 GiB'", "limits peak_reserved_bytes on the CPU"),
    ],
)
def test_mistakes_have_file_line_and_a_suggestion(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        config_of(text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_two_entries_of_one_name_are_named_as_such() -> None:
    with pytest.raises(UsageError, match="has an entry or a key twice"):
        config_of(f"{ENTRY}{ENTRY}")


def test_the_nearest_configuration_is_found_and_its_own_file_comes_first(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[tool.memprof.budgets.x]\nmodel = "gpt2"\n')
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert find_config(below).path == tmp_path / "pyproject.toml"
    (tmp_path / "memprof.toml").write_text(ENTRY)
    assert find_config(below).path == tmp_path / "memprof.toml"


def test_no_configuration_is_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(MemprofError) as error:
        find_config(tmp_path)
    assert error.value.exit_code == ExitCode.NOTHING_TO_DO
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(UsageError, match=r"has no \[tool.memprof\]"):
        find_config(tmp_path, str(tmp_path / "pyproject.toml"))
    with pytest.raises(UsageError, match="cannot read"):
        find_config(tmp_path, str(tmp_path / "none.toml"))


def test_malformed_toml_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "memprof.toml").write_text("[budgets.x]\nmodel = gpt2\n")
    with pytest.raises(UsageError, match=r"memprof\.toml:2: not TOML: Invalid value"):
        find_config(tmp_path)
    (tmp_path / "memprof.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        find_config(tmp_path)


def test_lines_are_found_in_quoted_and_spaced_headers() -> None:
    text = '[defaults]\nmodel = "gpt2"\n\n[ budgets . "model/adam" ]  # here\nbatch_size=3\n[budgets.z]\n'
    first, second = config_of(text).budgets
    assert (first.name, first.line, second.line) == ("model/adam", 4, 6)
