"""What reports say of several ranks."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from memprof.documents.comparison import Comparison, Peak, Rank, Run
from memprof.documents.recipe import Recipe
from memprof.report.content.ranks import rank_table, spans
from memprof.report.render.html import to_page
from memprof.report.render.markdown import to_markdown
from memprof.report.render.terminal import render
from tests.comparisons import MIB, make_comparison, make_run


def ranks_of(run: Run, shards: list[int]) -> list[Rank]:
    return [
        Rank(
            rank=number,
            device=f"cuda:{number}",
            parameters_bytes=shard,
            state_bytes=2 * shard,
            peak=Peak(allocated_bytes=9 * shard, process_bytes=10 * shard + number, phase="backward", step=1),
        )
        for number, shard in enumerate(shards)
    ]


def shared(shards: list[int], **recipe: Any) -> Comparison:
    run = make_run("adam", 2 * shards[0], device="cuda:0", rank=0)
    recipe = {"strategy": "fsdp", "world_size": len(shards), **recipe}
    return make_comparison(run.model_copy(update={"ranks": ranks_of(run, shards)}), recipe=Recipe(**recipe))


def test_a_row_for_each_group_of_ranks_that_hold_the_same() -> None:
    table = rank_table(shared([40 * MIB, 40 * MIB, 40 * MIB, 10 * MIB]))
    assert table.titles == ("optimizer", "rank", "parameters", "state", "all ranks' state", "allocated", "process")
    first, last = table.rows
    assert first == ("adam", "0-2*", "40.00 MiB", "80.00 MiB", "260.00 MiB", "360.00 MiB", "400.00 MiB")
    assert last == ("adam", "3", "10.00 MiB", "20.00 MiB", "-", "90.00 MiB", "100.00 MiB")


def test_every_report_names_strategy_ranks_and_the_batch_of_a_step() -> None:
    comparison = shared([MIB, MIB], accumulate=2)
    stream = io.StringIO()
    render(comparison, Console(file=stream, width=160))
    for text in (stream.getvalue(), to_markdown(comparison), to_page(comparison)):
        plain = text.replace("\\", "")
        assert "batch size 2 per rank, 8 per step" in plain
        assert "cuda:0, cuda:1 · fsdp over 2 ranks · fp32" in plain
        assert "What each rank holds" in plain
        assert "2.00 MiB" in plain


def test_a_single_rank_is_not_spoken_of() -> None:
    assert rank_table(make_comparison()).rows == ()
    assert "rank" not in to_markdown(make_comparison())


def test_csv_has_the_strategy_and_the_states_of_all_ranks() -> None:
    frame = shared([MIB, MIB], accumulate=2).to_frame()
    names = ["strategy", "world_size", "global_batch_size", "rank", "state_of_all_ranks_bytes"]
    assert frame[names].iloc[0].tolist() == ["fsdp", 2, 8, 0, 4 * MIB]
    assert make_comparison(make_run("adam", 8)).to_frame()[names].iloc[0].tolist()[:3] == ["single", 1, 2]


@pytest.mark.parametrize(
    ("numbers", "text"), [([0], "0"), ([0, 1], "0-1"), ([3, 0, 2, 7], "0, 2-3, 7"), (range(64), "0-63")]
)
def test_spans(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text
