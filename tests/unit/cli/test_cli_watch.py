from __future__ import annotations

import io
import threading
from typing import Any

import pytest
from rich.console import Console

from memprof.cli.watch import Watcher, result_of, state_of
from memprof.documents.comparison import Run
from memprof.workers.progress import Progress
from tests.comparisons import COUNT, make_broken_run, make_run


def event(stage: str, **details: Any) -> Progress:
    return Progress(**{"trial": 2, "trials": 6, "label": "adam", "purpose": "measure", "stage": stage, **details})


def watch(terminal: bool, *events: Progress) -> str:
    stream = io.StringIO()
    with Watcher(Console(file=stream, force_terminal=terminal, width=80, color_system=None)) as watcher:
        for one in events:
            watcher(one)
    return stream.getvalue()


def test_no_thread_refreshes_anything() -> None:
    before = threading.enumerate()
    with Watcher(Console(file=io.StringIO(), force_terminal=True)) as watcher:
        watcher(event("step", step=1, steps=3))
        assert threading.enumerate() == before


def test_nothing_is_drawn_between_events() -> None:
    stream = io.StringIO()
    with Watcher(Console(file=stream, force_terminal=True)) as watcher:
        watcher(event("step", step=1, steps=3))
        drawn = stream.tell()
        watcher(event("step", step=2, steps=3))
        assert stream.tell() > drawn


def test_a_terminal_shows_optimizer_step_and_peak() -> None:
    shown = watch(True, event("step", step=2, steps=3, peak_bytes=3 * 2**29))
    assert "[2/6] adam" in shown
    assert "step 2/3, peak 1.50 GiB" in shown


def test_elsewhere_only_finished_trials_make_a_line() -> None:
    steps = [event("start"), event("build"), event("step", step=1, steps=3)]
    assert watch(False, *steps) == ""
    shown = watch(False, *steps, event("done", run=make_run("adam", 8 * COUNT)))
    assert shown == "[2/6] adam: peak 2.05 GiB, state 949.40 MiB, 900 ms per step\n"


def test_fit_trials_are_named_as_such_and_show_their_peak() -> None:
    run = make_run("adam", 8 * COUNT)
    shown = watch(False, event("done", purpose="fit", label="adam  batch_size=4", run=run))
    assert shown == "[2/6] adam  batch_size=4 (fit): peak 2.05 GiB\n"


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (make_broken_run("a", "oom", "tried 2 GiB"), "out of memory: tried 2 GiB"),
        (make_broken_run("a", "failed", "boom"), "failed: boom"),
        (make_broken_run("a", "ok", None), "done"),
    ],
)
def test_how_a_trial_ended(run: Run, text: str) -> None:
    assert result_of(event("done", run=run)) == text


def test_stages_have_words() -> None:
    assert state_of(event("start")) == "starting"
    assert state_of(event("build", peak_bytes=2**20)) == "building the model, peak 1.00 MiB"
    assert state_of(event("step", step=2, phase="backward", peak_bytes=2**20)) == (
        "step 2, the backward pass, peak 1.00 MiB"
    )
    assert state_of(event("build", phase="load")).startswith("building the model, load")


def test_long_and_odd_labels_are_shown_as_they_are() -> None:
    label = "pkg.mod:Opt,betas=[0.9,0.95],note=[bold]" * 3
    assert label in watch(False, event("done", label=label, run=make_run("adam", 8)))
