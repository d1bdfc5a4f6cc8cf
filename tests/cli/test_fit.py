"""`memprof fit` and `memprof advise` as users run them; small models, devices that are not here."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Command

FIT = ("fit", "mlp", "-o", "sm3", "-o", "adam")


def test_matrix_for_two_gpus(memprof: Command, tmp_path: Path) -> None:
    done = memprof(*FIT, "--device", "1GiB", "--device", "2GiB", "--margin", "10%", "--export-csv", "fit.csv")
    assert done.returncode == 0, done.stderr
    assert "1GiB" in done.stdout
    assert "without a margin of 10%" in done.stdout
    assert "4 cells predicted: done" in done.stderr
    head, *rows = (tmp_path / "fit.csv").read_text().splitlines()
    assert head.startswith("model,optimizer,device,capacity_bytes,usable_bytes,knob,largest")
    assert len(rows) == 4


def test_mistakes_are_one_sentence(memprof: Command) -> None:
    for arguments, words in (
        (("--vary", "batch_size=0:4"), "LO is 0; it must be at least 1"),
        (("--device", "1GiB", "--budget", "3MiB"), "the weights alone take 4.56 MiB"),
    ):
        done = memprof(*FIT, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_nothing_fits_is_exit_code_1(memprof: Command) -> None:
    done = memprof("fit", "mlp", "-o", "adam", "--device", "1GiB", "--budget", "12MiB")
    assert done.returncode == 1, done.stderr
    assert "On 1GiB not even batch_size=1 fits with adam" in " ".join(done.stdout.split())


def test_trained_answer_is_confirmed(memprof: Command) -> None:
    done = memprof("fit", "mlp", "-o", "sgd", "--device", "cpu", "--budget", "12MiB", "--json")
    report = json.loads(done.stdout)
    (cell,) = report["cells"]
    assert cell["answer"]["method"] == "confirmed"
    assert cell["answer"]["peak_bytes"] <= 12 << 20 < cell["answer"]["next_peak_bytes"]
    assert report["evaluations"]["trained"] >= 2


def test_advice_is_ranked_and_exported(memprof: Command) -> None:
    done = memprof("advise", "mlp", "-b", "64", "--device", "1GiB", "--budget", "44MiB", "--export-markdown", "a.md")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "It does not fit" in words
    assert "The least disturbing change that makes it fit" in words


def test_schemas_of_both_documents(memprof: Command) -> None:
    for name in ("fit", "advice"):
        schema = json.loads(memprof("schema", name).stdout)
        assert schema["properties"]["schema"]["const"] == f"memprof.{name}/1"
