"""A script that torchrun starts: one rank predicted with nobody there, or all measured as processes that use gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

import memprof
from memprof.documents.comparison import Comparison, Run
from memprof.errors import ExitCode, MemprofError
from memprof.workers.launcher import Launcher

SCRIPTS = Path(__file__).parents[1] / "data" / "scripts"
MODEL = 4 * 3 * (60 * 240 + 240 + 240 * 60 + 60)  # bytes of the parameters of shared.py
needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


def run(launcher: Launcher, name: str, *arguments: str, **options: object) -> Comparison:
    return memprof.run(SCRIPTS / name, arguments, **{"device": "rtx-4090", "launcher": launcher, **options})


def errors(found: Run) -> dict[tuple[str | None, str], int]:
    assert found.validation is not None
    assert found.validation.reason is None
    deviations = [one for one in found.validation.deviations if one.category is None]
    return {(one.phase, one.layer): one.error_bytes for one in deviations if one.layer in ("state", "allocated")}


@needs_gloo
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_predicted_and_measured_ranks_agree_in_every_phase(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    made = run(launcher, "shared.py", how, device="cpu", world_size=2, validate=True)
    (found,) = made.runs
    assert found.status == "ok", found.reason
    assert [one.rank for one in found.ranks] == [0, 1]
    off = errors(found)
    phases = {"build", "forward", "backward", "clip", "optimizer", "zero_grad", "other"}
    saves = {"save", "load"} if how == "ddp" and found.rank == 0 else {"load"} if how == "ddp" else set()
    assert {phase for phase, layer in off if layer == "allocated"} == {None, *phases, *saves}
    assert {key: error for key, error in off.items() if abs(error) > 16} == {}
    assert found.state.bytes == pytest.approx(2 * MODEL / (1 if how == "ddp" else 2), rel=1e-3)
    assert list(tmp_path.iterdir()) == []
    made.save(tmp_path / "ranks.json")
    read = Comparison.load(tmp_path / "ranks.json")
    assert read == made
    assert (read.world_size, read.script.rank, read.strategy) == (2, None, None)
    assert "2 ranks" in made.to_markdown()


@needs_gloo
def test_the_rank_that_is_asked_for_is_shown(launcher: Launcher, tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    made = run(launcher, "talks.py", device="cpu", world_size=2, rank=1, steps=2, script_output=said)
    (found,) = made.runs
    assert (found.rank, len(found.ranks), made.script.rank) == (1, 2, 1)
    lines = said.read_text(encoding="utf-8").splitlines()
    assert lines.count("broadcast {'from': 0}") == 2
    assert {"scattered for 0", "scattered for 1", "half 0 1"} <= set(lines)
    assert lines.count("reduced 6.0 3.0") == 2
    assert lines.count("destroyed False") == 2


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_rank_is_predicted_on_a_gpu(launcher: Launcher, how: str) -> None:
    (found,) = run(launcher, "shared.py", how, world_size=4, optimizers=["as-is"]).runs
    assert found.status == "ok", found.reason
    assert (found.rank, found.ranks, found.optimizer.implementation) == (0, [], "foreach")
    share = 1 if how == "ddp" else 4
    assert found.parameters.bytes == MODEL / share
    assert found.state.bytes == pytest.approx(2 * MODEL / share, rel=2e-3)
    assert found.breakdown.by_category["communication"] > 0
    assert any("rank 0 of 4" in note for note in found.notes)
    assert any("NCCL" in note for note in found.notes)


@pytest.mark.parametrize("how", ["tp", "fsdp1", "zero"])
def test_other_ways_of_sharing(launcher: Launcher, how: str) -> None:
    made = run(launcher, "sharded.py", how, world_size=4, optimizers=["as-is", "sm3"])
    own, sm3 = made.runs
    whole = 4 * 3 * (64 * 256 + 256 + 256 * 64 + 64)
    assert own.parameters.bytes == pytest.approx(whole / (1 if how == "zero" else 4), rel=0.01)
    first = 2 * (2 * 4 * 64 * 256)  # of six weights ZeRO gives two to the first of four ranks
    assert own.state.bytes == pytest.approx(first if how == "zero" else 2 * whole / 4, rel=0.03)
    assert sm3.state.bytes < own.state.bytes / (1.9 if how == "fsdp1" else 10)  # one flat parameter has no rows
    assert not any("ZeroRedundancyOptimizer" in note for note in own.notes)


def test_functional_collectives(launcher: Launcher, tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    (found,) = run(launcher, "functional_collectives.py", world_size=4, script_output=said).runs
    assert found.status == "ok", found.reason
    lines = [line for line in said.read_text(encoding="utf-8").splitlines() if line.startswith("[(")]
    assert set(lines) == {"[(16,), (64,), (4,), (16,), (16,)]"}


def test_batch_norm_over_all_ranks(launcher: Launcher) -> None:
    (found,) = run(launcher, "sharded.py", "syncbn", world_size=4).runs
    whole = 4 * (3 * (64 * 256 + 256 + 256 * 64 + 64) + 2 * 64)
    assert (found.status, found.parameters.bytes) == ("ok", whole)
    assert found.state.bytes == 2 * whole + 4 * 14
    assert found.breakdown.by_category["buffers"] > 0


@pytest.mark.parametrize(("rank", "heard"), [(0, True), (3, False)])
def test_what_others_send_is_what_this_one_has(launcher: Launcher, tmp_path: Path, rank: int, heard: bool) -> None:
    said = tmp_path / "said.txt"
    (found,) = run(launcher, "talks.py", world_size=4, rank=rank, script_output=said).runs
    assert found.rank == rank
    lines = [line for line in said.read_text(encoding="utf-8").splitlines() if "Warning" not in line]
    assert f"gathered 4 {{'of': {rank}}}" in lines
    assert ("broadcast {'from': 0}" in lines) is heard
    assert ("scattered for 0" in lines) is heard
    assert "reduced 12.0 3.0" in lines
    assert "parts [4.0, 4.0, 4.0, 4.0]" in lines
    assert ("half 0 2" in lines) is (rank == 0)
    assert lines[-1] == "destroyed False"
    warned = [text for text in found.confidence.warnings if "that only another rank has" in text]
    assert len(warned) == (0 if heard else 2)


@pytest.mark.parametrize("device", ["rtx-4090", pytest.param("cpu", marks=needs_gloo)])
def test_a_script_without_a_process_group_is_noted(launcher: Launcher, device: str) -> None:
    (found,) = run(launcher, "plain.py", device=device, world_size=2, steps=2).runs
    assert any("made no process group" in note for note in found.notes)


ASKS = {
    "import os\nrank = int(os.environ['LOCAL_RANK'])\n": r"raised KeyError: 'LOCAL_RANK' \(.*:2\): .*--world-size N",
    "import torch.distributed as dist\ndist.init_process_group('gloo')\n": r"RANK expected.*not set .*--world-size N",
}


@pytest.mark.parametrize("device", ["cpu", "rtx-4090"])
@pytest.mark.parametrize("source", ASKS)
def test_a_script_that_asks_for_its_rank(launcher: Launcher, tmp_path: Path, source: str, device: str) -> None:
    path = tmp_path / "script.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(MemprofError, match=ASKS[source]) as caught:
        memprof.run(path, device=device, launcher=launcher)
    assert caught.value.exit_code == ExitCode.USAGE


def test_another_number_of_ranks_than_the_scripts_own(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        "import torch.distributed as dist\n"
        "dist.init_process_group('gloo', init_method='tcp://127.0.0.1:29500', rank=0, world_size=3)\n"
    )
    with pytest.raises(MemprofError, match=r"script.py:2 makes a process group of 3, and --world-size is 2; give 3"):
        memprof.run(path, device="rtx-4090", world_size=2, launcher=launcher)


@pytest.mark.parametrize("device", ["rtx-4090", pytest.param("cpu", marks=needs_gloo)])
def test_processes_that_the_script_starts_are_its_ranks(launcher: Launcher, device: str) -> None:
    (found,) = run(launcher, "spawns.py", device=device, world_size=2).runs
    assert (found.status, found.rank) == ("ok", 0)
    assert found.state.bytes == 2 * found.parameters.bytes + 2 * 4
    with pytest.raises(MemprofError, match=r"spawns\.py:26 starts 2 processes, and --world-size is 3; give 2"):
        run(launcher, "spawns.py", device=device, world_size=3)
    with pytest.raises(MemprofError, match=r"spawns\.py:26 starts processes of its own.* give --world-size 2"):
        run(launcher, "spawns.py", device=device)


@needs_gloo
def test_what_a_rank_raises_is_one_sentence_and_nothing_is_left(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        "import torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "if dist.get_rank() == 1:\n"
        "    raise ValueError('no such sample')\n"
        "dist.barrier()\n"
    )
    with pytest.raises(
        MemprofError, match=r"script\.py raised ValueError: no such sample \(.*script\.py:4\)"
    ) as caught:
        memprof.run(path, device="cpu", world_size=2, launcher=launcher)
    assert caught.value.exit_code == ExitCode.USAGE


@needs_gloo
def test_ranks_that_wait_for_ever_are_ended(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        "import torch.distributed as dist\nimport time\n"
        "dist.init_process_group('gloo')\n"
        "if dist.get_rank() == 1:\n"
        "    time.sleep(600)\n"
        "dist.barrier()\n"
    )
    with pytest.raises(MemprofError, match=r"still running in .*script\.py:[56] when 3 s were over"):
        memprof.run(path, device="cpu", world_size=2, timeout=3, launcher=launcher)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"world_size": 0}, "--world-size 0: give the number of ranks, from 1 to 16384"),
        ({"world_size": 10**6}, "--world-size 1000000: give the number of ranks, from 1 to 16384"),
        ({"world_size": 4, "rank": 4}, "--rank 4: the 4 ranks are counted from 0 to 3"),
        ({"world_size": 4, "rank": -1}, "--rank -1: the 4 ranks are counted from 0 to 3"),
        ({"rank": 1}, "say of how many with --world-size"),
        ({"world_size": 1000, "device": "cpu"}, "starts as many processes on this machine; give 64 at most"),
    ],
)
def test_ranks_that_there_are_not(launcher: Launcher, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(MemprofError, match=sentence) as caught:
        run(launcher, "plain.py", **options)
    assert caught.value.exit_code == ExitCode.USAGE
