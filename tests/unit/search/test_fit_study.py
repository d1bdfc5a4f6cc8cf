"""`memprof.fit` end to end: what is refused before any work, and what happens where nothing can be predicted."""

from __future__ import annotations

from pathlib import Path

import pytest

import memprof
from memprof.errors import ExitCode, MemprofError
from memprof.workers.launcher import Launcher

FAULTY = Path(__file__).parents[2] / "data" / "models" / "faulty.py"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"vary": "n_layer"}, "mlp has no knob 'n_layer'; did you mean 'n_layers'?"),
        ({"devices": []}, "there is no device to fill"),
        ({"devices": ["gtx-9000"]}, "is not a GPU that can be simulated"),
        ({"devices": ["1GiB", "1GiB"]}, "a device is given twice"),
        ({"budget": 0}, "it must be more than nothing"),
        ({"margin": "all"}, "write a share such as 5%"),
        ({"optimizers": ["sgd", "sgd"]}, "is given twice"),
    ],
)
def test_mistakes_are_refused_before_any_trace(launcher: Launcher, arguments: dict, words: str):
    with pytest.raises(MemprofError) as caught:
        memprof.fit("mlp", **{"optimizers": ["sgd"], "devices": ["1GiB"], "launcher": launcher, **arguments})
    assert caught.value.exit_code == ExitCode.USAGE
    assert words in str(caught.value)


def test_prediction_alone_is_called_so(launcher: Launcher):
    report = memprof.fit(
        "mlp", optimizers=["sgd", "muon"], devices=["cpu"], budget="12MiB", confirm=False, launcher=launcher
    )
    sgd, muon = report.cells
    assert sgd.answer.method == "predicted"
    assert muon.answer is None
    assert "matrices only" in muon.reason
    assert report.evaluations.trained == 0


def test_model_that_cannot_be_predicted_is_searched_by_training(launcher: Launcher):
    options = {"optimizers": ["sgd"], "budget": "64KiB", "vary": "batch_size=1:4096", "launcher": launcher}
    report = memprof.fit(f"{FAULTY}:without_kernel", devices=["cpu"], **options)
    (cell,) = report.cells
    assert cell.answer.method == "confirmed"
    assert cell.answer.peak_bytes <= 64 << 10 < cell.answer.next_peak_bytes
    assert report.notes[0].startswith("Nothing was predicted: ")
    assert report.evaluations.predicted == 0
    with pytest.raises(MemprofError, match="has no fake kernel"):
        memprof.fit(f"{FAULTY}:without_kernel", devices=["1GiB"], **options)
