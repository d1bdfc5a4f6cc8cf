"""The API end to end on the CPU, with real workers; faults leave the other optimizers' rows whole."""

from __future__ import annotations

from pathlib import Path

import pytest

import memprof
from memprof.documents.comparison import Comparison
from memprof.documents.jobs import Trial
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import ExitCode, MemprofError, UsageError
from memprof.workers.launcher import Launcher

FAULTY = Path(__file__).parents[1] / "data" / "models" / "faulty.py"


def compare(launcher: Launcher, attribute: str, *optimizers: str, **options) -> Comparison:
    options = {"fit": False, "batch_size": 4, "launcher": launcher, **options}
    return memprof.compare(f"{FAULTY}:{attribute}", optimizers=optimizers or ["sgd"], **options)


def test_rows_of_dead_and_broken_optimizers_stand_beside_finished_ones(launcher: Launcher):
    delivered: list[Comparison] = []
    names = ["Fatal", "Crash", "Greedy", "Broken"]
    faulty = [f"{FAULTY}:{name}" for name in names]
    result = compare(launcher, "good", "adam", *faulty, "sgd", on_comparison=delivered.append)
    runs = dict(zip(["adam", *names, "sgd"], result.runs, strict=True))
    assert {name: run.status for name, run in runs.items()} == {
        "adam": "ok",
        "Fatal": "failed",
        "Crash": "failed",
        "Greedy": "oom",
        "Broken": "failed",
        "sgd": "ok",
    }
    assert "SIGKILL" in runs["Fatal"].reason
    assert "exit code 7" in runs["Crash"].reason
    assert "optimizer phase of step 1" in runs["Greedy"].reason
    assert "this optimizer is broken (" in runs["Broken"].reason
    assert "faulty.py:" in runs["Broken"].reason
    assert [len(partial.runs) for partial in delivered] == [1, 2, 3, 4, 5, 6]
    assert delivered[-1] == result


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("builder_raises", "ValueError: no such layer"),
        ("loss_is_a_vector", "the loss has shape (4,); reduce it to a scalar"),
        ("loss_is_a_float", "the loss is a float; return a scalar tensor"),
        ("loss_is_detached", "the loss does not depend on any trainable parameter"),
        ("forward_raises", "mat1 and mat2 shapes cannot be multiplied"),
        ("no_parameters", "the model has no parameters"),
        ("frozen", "every parameter of the model is frozen"),
        ("missing", "missing"),
    ],
)
def test_fault_of_the_workload_is_one_sentence(launcher: Launcher, attribute: str, words: str):
    workload = WorkloadSpec(model=f"{FAULTY}:{attribute}")
    sgd = parse_optimizer("sgd")
    with pytest.raises(MemprofError) as caught:
        launcher.run(Trial(workload=workload, optimizer=sgd, device="cpu", batch_size=4, recipe=memprof.Recipe()))
    assert caught.value.exit_code == ExitCode.USAGE
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_loss_fails_the_row(launcher: Launcher):
    (run,) = compare(launcher, "loss_is_nan").runs
    assert run.status == "failed"
    assert "the loss is nan at step 1" in run.reason


def test_tied_parameters_count_once_and_are_trained(launcher: Launcher):
    (run,) = compare(launcher, "tied", "adam").runs
    assert run.parameters.count == 50 * 8
    assert run.state.bytes == 2 * 50 * 8 * 4 + 4


def test_sparse_gradients_work_where_the_optimizer_takes_them(launcher: Launcher):
    adam, adagrad, sm3 = compare(launcher, "sparse", "adam", "adagrad", "sm3").runs
    assert (adam.status, adagrad.status, sm3.status) == ("failed", "ok", "ok")
    assert "sparse gradients" in adam.reason
    assert sm3.breakdown.by_category["gradients"] > 0


def test_complex_parameters(launcher: Launcher):
    adam, sm3 = compare(launcher, "complex_parameters", "adam", "sm3").runs
    assert adam.status == "ok"
    assert sm3.status == "failed"
    assert "complex" in sm3.reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optimizers": []}, "no optimizer to compare"),
        ({"optimizers": ["adam", "adam"]}, "'adam' is given twice"),
        ({"batch_size": 0}, "the batch size is 0"),
        ({"reference": "sgd"}, "'sgd' is not among the optimizers compared"),
        ({"optimizers": ["adamm"]}, "did you mean 'adam'"),
        ({"optimizers": ["adam,lrr=1"]}, "lr"),
        ({"optimizers": ["adam,lr=-1"]}, "Invalid learning rate: -1"),
        ({"budget": "12 parsecs"}, "'12 parsecs' is not a size"),
        ({"device": "rtx-4091"}, "rtx-4090"),
        ({"device": "rtx-4090", "confirm": True, "fit": True}, "rtx-4090 is simulated; leave --confirm out"),
        ({"knobs": {"widht": 3}}, "did you mean 'width'"),
        ({"recipe": memprof.Recipe(step_in_backward=True, accumulate=2)}, "excludes gradient accumulation"),
        ({"recipe": memprof.Recipe(checkpoint_activations=True)}, "no repeated blocks"),
    ],
)
def test_wrong_arguments_are_one_sentence(launcher: Launcher, arguments: dict, words: str):
    arguments = {"optimizers": ["adam"], "fit": False, "launcher": launcher, **arguments}
    with pytest.raises(MemprofError, match=words.replace("(", r"\(")) as caught:
        memprof.compare(f"{FAULTY}:good", **arguments)
    assert caught.value.exit_code == ExitCode.USAGE


def test_function_of_a_file_is_imported_from_it_and_a_lambda_refused(launcher: Launcher):
    from tests.data.models import faulty

    result = memprof.compare(faulty.tied, optimizers=["sgd"], batch_size=2, fit=False, launcher=launcher)
    assert result.workload.model.endswith("faulty.py:tied")
    with pytest.raises(UsageError, match="workers cannot import"):
        memprof.compare(lambda: None, optimizers=["sgd"])


def test_fit_extrapolates_and_confirm_proves_it(launcher: Launcher):
    knobs = {"n_layers": 2, "d_model": 64}
    options = {"optimizers": ["sm3", "adam"], "batch_size": 4, "knobs": knobs, "launcher": launcher}
    result = memprof.compare("mlp", budget="3 MiB", confirm=True, **options)
    guess = memprof.compare("mlp", budget="3 MiB", **options)
    for run, guessed in zip(result.runs, guess.runs, strict=True):
        for answer in (run.fit.batch_size, run.fit.model):
            assert answer.method == "confirmed"
            assert answer.peak_bytes <= 3 << 20
            assert answer.next_value == answer.value + 1
            assert answer.next_peak_bytes is None or answer.next_peak_bytes > 3 << 20
            trained = {point.value for point in answer.points}
            assert {answer.value, answer.next_value} <= trained
        assert guessed.fit.batch_size.method == "extrapolated"
        assert guessed.fit.batch_size.value == run.fit.batch_size.value
        assert guessed.fit.model.value == run.fit.model.value
    sm3, adam = result.runs
    assert sm3.fit.model.parameters > adam.fit.model.parameters


def test_nothing_fits_a_budget_below_the_parameters(launcher: Launcher):
    result = memprof.compare("mlp", optimizers=["adam"], batch_size=4, budget="1 MiB", launcher=launcher)
    assert result.runs[0].fit.batch_size.value == 0


def test_simulated_gpu_is_predicted_with_the_largest_batch_tried(launcher: Launcher):
    options = {"knobs": {"n_layers": 2, "d_model": 256}, "optimizers": ["sm3", "adam"], "batch_size": 64}
    result = memprof.compare("mlp", device="rtx-4090", budget="64 MiB", launcher=launcher, **options)
    assert result.capacity.bytes == 64 << 20
    for run in result.runs:
        assert (run.source, run.device, run.status) == ("predicted", "rtx-4090", "ok")
        assert run.peak.tensor_bytes <= run.peak.allocated_bytes <= run.peak.reserved_bytes
        assert run.peak.reserved_bytes < run.peak.process_bytes <= run.peak.process_upper_bytes
        assert run.steps.seconds == []
        answer = run.fit.batch_size
        assert answer.method == "predicted"
        assert answer.peak_bytes <= 64 << 20
        assert {answer.value, answer.next_value} <= {point.value for point in answer.points}
    assert result.runs[1].state.bytes > result.runs[0].state.bytes


def test_prediction_of_a_cpu_sized_budget_says_out_of_memory(launcher: Launcher):
    options = {"device": "1GiB", "batch_size": 8, "optimizers": ["adam"], "fit": False}
    result = memprof.compare("gpt2", launcher=launcher, **options)
    (run,) = result.runs
    assert run.status == "oom"
    assert "needed" in run.reason
