from __future__ import annotations

import re

import pytest

from memprof.documents.comparison import Comparison
from memprof.documents.confidence import Deviation, Validation
from memprof.report.render.markdown import escape, to_markdown
from tests.comparisons import COUNT, make_answer, make_broken_run, make_comparison, make_environment, make_run

UNESCAPED_PIPE = re.compile(r"(?<!\\)\|")


def tables(text: str) -> list[list[str]]:
    blocks = (block.splitlines() for block in text.split("\n\n"))
    return [lines for lines in blocks if lines[0].startswith("| ")]


def test_the_report_has_its_sections_in_order() -> None:
    text = to_markdown(make_comparison())
    assert re.findall(r"^#+ .*", text, re.MULTILINE) == [
        "# Training memory of gpt2",
        "## Who holds the memory at the peak",
        "## What would lower the peak",
        "## Peak within each phase",
        "## Largest batch and model",
        "## Caveats",
        "## Environment",
        "## Reproduce",
    ]
    assert "**Measured: sm3 keeps 1.20 MiB of state where adam keeps 949.40 MiB;" in text
    assert "```sh\nmemprof compare gpt2 -b 2 --set seq_len=128\n```" in text


@pytest.mark.parametrize("name", ["a|b", "a\\|b", "`x`", "<b>&", "[x](y)", "a\nb", "*x*", "~x~", "_x_"])
def test_every_row_has_as_many_cells_as_its_heading(name: str) -> None:
    comparison = make_comparison(make_run(name, 8 * COUNT), make_broken_run(f"{name}2", "failed", name))
    found = tables(to_markdown(comparison))
    assert len(found) == 5
    for lines in found:
        assert len({len(UNESCAPED_PIPE.findall(line.replace("\\\\", ""))) for line in lines}) == 1


def test_escaping_leaves_plain_names_alone() -> None:
    assert escape("sm3,momentum=0.9 seq_len=128") == "sm3,momentum=0.9 seq_len=128"
    assert escape("a|b`c`<i>&[x]*_y_~\\") == "a\\|b\\`c\\`&lt;i&gt;&amp;\\[x\\]\\*\\_y\\_\\~\\\\"
    assert escape("two\nlines") == "two lines"


def test_the_same_document_gives_the_same_bytes() -> None:
    comparison = make_comparison()
    again = Comparison.model_validate_json(comparison.to_json())
    assert to_markdown(comparison) == to_markdown(again)


def test_tables_hold_no_timestamps() -> None:
    text = to_markdown(make_comparison())
    assert "2026-01-02T03:04:05+00:00" in text
    assert not any("2026" in line for lines in tables(text) for line in lines)


def test_the_phase_that_sets_the_peak_is_marked() -> None:
    text = to_markdown(make_comparison(make_run("adam", 8 * COUNT)))
    assert "| adam | 1.95 GiB | 2.05 GiB \\* | 2.00 GiB |" in text


def test_fit_rows_say_what_was_trained_and_what_does_not_fit() -> None:
    text = to_markdown(make_comparison(make_run("adam", 8 * COUNT)))
    assert (
        "| adam | batch_size | \\~52 | 23.00 GiB | the backward pass | 53 | 25.00 GiB | 1: 1.00 GiB, 2: out of memory |"
    ) in text
    none = make_run("adam", 8, fit={"batch_size": make_answer("batch_size", 0, peak_bytes=None, points=[])})
    assert "| adam | batch_size | none | - | the backward pass | 1 | 25.00 GiB | - |" in to_markdown(
        make_comparison(none)
    )


def test_a_gpu_is_described_with_its_driver() -> None:
    environment = make_environment(gpu="NVIDIA H200", gpu_memory_bytes=140 * 2**30, driver="570.1", cuda="13.0")
    text = to_markdown(make_comparison(environment=environment))
    assert "- GPU: NVIDIA H200, memory 140.00 GiB, driver 570.1, CUDA 13.0" in text
    assert "- GPU" not in to_markdown(make_comparison())


def test_a_command_with_backticks_stays_in_its_fence() -> None:
    environment = make_environment(command="memprof compare 'a```b'")
    assert "````sh\nmemprof compare 'a```b'\n````" in to_markdown(make_comparison(environment=environment))
    assert "Reproduce" not in to_markdown(make_comparison(environment=make_environment(command=None)))


def test_comparisons_without_figures_have_no_empty_sections() -> None:
    text = to_markdown(make_comparison(make_broken_run("adam", "oom", "it is full")))
    assert "- adam: out of memory: it is full" in text
    assert "Who holds" not in text
    assert "Peak within" not in text
    assert "Largest" not in text
    assert "\n\n\n" not in text


def test_predictions_stand_beside_what_was_measured_with_their_signed_error() -> None:
    deviations = [
        Deviation(layer="allocated", predicted_bytes=1100, measured_bytes=1000),
        Deviation(layer="allocated", phase="forward", predicted_bytes=990, measured_bytes=1000),
        Deviation(layer="state", predicted_bytes=8, measured_bytes=8),
    ]
    fine = Validation(upper_bytes=1200, upper_held=True, deviations=deviations)
    none = Validation(reason="it reads the data")
    comparison = make_comparison(make_run("adam", 8, validation=fine), make_run("sgd", 0, validation=none))
    text = to_markdown(comparison).partition("## Predicted against measured")[2].partition("## ")[0]
    assert "| optimizer | state | allocated | upper bound |" in text
    assert "| adam | exact | +10 % | held |" in text
    assert "- sgd: it reads the data" in text
    assert "| adam | allocated, forward | 990 B | 1000 B | -1.0 % |" in text.partition("<details>")[2]
    assert "Predicted against measured" not in to_markdown(make_comparison())


def test_caveats_say_what_measuring_on_a_cpu_does_not_tell() -> None:
    measured = to_markdown(make_comparison(make_run("adam", 8)))
    assert "- Measured on a CPU: a GPU's allocator rounds up" in measured
    assert "- Values with \\~ lie on straight lines" in measured
    elsewhere = make_comparison(make_run("adam", 8, source="predicted", device="rtx-4090", fit=None, notes=[]))
    assert "## Caveats" not in to_markdown(elsewhere)
