"""The largest value that fits in the place of a script's placeholder: `memprof run --vary`."""

from __future__ import annotations

from pathlib import Path

import pytest

import memprof
from memprof.documents.comparison import Comparison
from memprof.errors import ExitCode, MemprofError
from memprof.report.figures.batch import draw_batches
from memprof.report.render.html import to_page
from memprof.workers.launcher import Launcher

SCRIPT = Path(__file__).parents[1] / "data" / "scripts" / "batches.py"
VARIED = ["--batch_size={batch}"]


def run(launcher: Launcher, arguments: list[str] = VARIED, **options: object) -> Comparison:
    return memprof.run(SCRIPT, arguments, **{"device": "rtx-4090", "launcher": launcher, **options})


def fits(launcher: Launcher, batch: int, **options: object) -> bool:
    (found,) = run(launcher, [f"--batch_size={batch}"], **options).runs
    return found.status == "ok"


@pytest.fixture(scope="module")
def made(launcher: Launcher) -> Comparison:
    return run(launcher, vary="batch=8:4096:8", budget="48MiB", optimizers=["as-is", "sm3"])


def test_the_answer_fits_and_the_next_value_does_not(launcher: Launcher, made: Comparison) -> None:
    for one in made.runs:
        answer = one.fit.batch_size
        assert (answer.knob, answer.method) == ("batch", "predicted")
        assert answer.next_value == answer.value + 8
        assert len(answer.points) <= 20
        asked = {"budget": "48MiB", "optimizers": [one.optimizer.spec]}
        assert fits(launcher, answer.value, **asked)
        assert not fits(launcher, answer.next_value, **asked)
    own, sm3 = (one.fit.batch_size.value for one in made.runs)
    assert own < sm3


def test_the_figures_of_all_optimizers_are_those_of_one_value(launcher: Launcher, made: Comparison) -> None:
    least = made.runs[0].fit.batch_size.value
    assert made.script.knobs == {"batch": least}
    alone = run(launcher, [f"--batch_size={least}"], budget="48MiB", optimizers=["as-is", "sm3"])
    assert [one.peak for one in made.runs] == [one.peak for one in alone.runs]


def test_it_is_saved_and_shown_as_any_comparison(made: Comparison, tmp_path: Path) -> None:
    own, sm3 = (one.fit.batch_size.value for one in made.runs)
    made.save(tmp_path / "run.json")
    read = Comparison.load(tmp_path / "run.json")
    assert read == made
    text = read.to_markdown()
    assert f"largest batch {sm3} instead of {own}" in text
    assert read.to_frame()["largest_batch_size"].tolist() == [own, sm3]
    page = to_page(read)
    assert f"<th>batch={own} fits</th>" in page
    assert draw_batches(read)[0].startswith("Peak against batch: ")


def test_a_value_that_the_script_refuses_is_left_out(launcher: Launcher) -> None:
    (found,) = run(launcher, vary="batch=8:99", optimizers=["sgd"]).runs
    assert (found.fit.batch_size.value, found.fit.batch_size.next_value) == (98, None)
    assert any(
        "that the script does not take were left out" in note and "cannot be halved" in note for note in found.notes
    )


def test_nothing_fits_or_everything(launcher: Launcher) -> None:
    (nothing,) = run(launcher, vary="batch=8:64:8", budget="4MiB").runs
    assert (nothing.status, nothing.fit.batch_size.value, nothing.fit.batch_size.next_value) == ("oom", 0, 8)
    made = run(launcher, vary="batch=8:64:8")
    (everything,) = made.runs
    assert (everything.fit.batch_size.value, everything.fit.batch_size.next_value) == (64, None)
    assert any("Every value up to batch=64" in note for note in everything.notes)
    assert "64+" in made.to_markdown()


def test_an_optimizer_that_refuses_the_script_is_a_row(launcher: Launcher) -> None:
    own, muon = run(launcher, vary="batch=8:16:8", optimizers=["as-is", "muon"]).runs
    assert own.fit.batch_size.value == 16
    assert (muon.status, muon.fit) == ("failed", None)


def test_on_a_device_that_is_here_the_answer_is_run(launcher: Launcher) -> None:
    (found,) = run(launcher, device="cpu", vary="batch=8:4096:8", budget="48MiB").runs
    answer = found.fit.batch_size
    assert (found.source, answer.method) == ("measured", "confirmed")
    assert answer.next_value == answer.value + 8
    assert answer.peak_bytes <= 48 << 20
    assert found.peak.allocated_bytes == answer.peak_bytes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"arguments": ["--batch_size=8"]}, r"no argument of .*batches\.py has the placeholder \{batch\}; write for"),
        ({"arguments": ["--batch_size={bacth}"]}, r"placeholder \{batch\}; did you mean 'bacth'"),
        ({"arguments": ["--batch_size={{batch}}"]}, r"doubles its braces; with --vary write \{batch\}, once"),
        ({"arguments": [*VARIED, "--width={width}"]}, r"the placeholder \{width\} has no --vary"),
        ({"vary": "batch=8:"}, "--vary takes KNOB"),
        ({"vary": "batch=8:4"}, "below LO"),
        ({"vary": "batch=1:4"}, r"batch=1: .*batches\.py left by sys\.exit\('a batch of 1 cannot be halved'\)"),
        ({"vary": None}, r"which only --vary batch=LO:HI gives a value"),
    ],
)
def test_mistakes(launcher: Launcher, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(MemprofError, match=sentence) as caught:
        run(launcher, **{"vary": "batch=8:64", **options})
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(caught.value)


def test_braces_stay_what_they_are(launcher: Launcher) -> None:
    options = '--options={"lr":0.5,"betas":[0.9,0.99]}'
    (plain,) = run(launcher, [options, "--batch_size=8"]).runs
    assert plain.status == "ok"
    (varied,) = run(launcher, [options, *VARIED], vary="batch=8:16:8").runs
    assert varied.fit.batch_size.value == 16


@pytest.mark.parametrize("call", [memprof.fit, memprof.advise])
def test_a_script_given_to_a_search_of_a_model(launcher: Launcher, call: object) -> None:
    with pytest.raises(MemprofError, match=r"memprof run --vary batch=1:64 .*batches\.py --batch_size=\{batch\}"):
        call(str(SCRIPT), launcher=launcher)
