"""A script on a GPU that is not here."""

from __future__ import annotations

from pathlib import Path

import pytest

import memprof
from memprof.documents.comparison import Comparison
from memprof.workers.launcher import Launcher

SCRIPTS = Path(__file__).parents[1] / "data" / "scripts"


def run(launcher: Launcher, name: str, *arguments: str, **options: object) -> Comparison:
    return memprof.run(SCRIPTS / name, arguments, **{"device": "rtx-4090", "launcher": launcher, **options})


@pytest.mark.parametrize("name", ["plain.py", "gan.py", "evaluates.py"])
def test_a_script_trains_on_a_gpu_that_is_not_here(launcher: Launcher, tmp_path: Path, name: str) -> None:
    arguments = [str(tmp_path)] if name == "evaluates.py" else []
    (found,) = run(launcher, name, *arguments).runs
    assert (found.status, found.source, found.device) == ("ok", "predicted", "rtx-4090")
    assert found.optimizer.implementation == "foreach"
    assert found.peak.reserved_bytes % (2 << 20) == 0
    assert len(found.steps.allocated_bytes) >= 3
    assert found.steps.allocated_bytes[-1] == found.steps.allocated_bytes[-2]
    assert list(tmp_path.iterdir()) == []


def test_a_workload_as_a_script_is_predicted_as_compare_does(launcher: Launcher) -> None:
    script = run(launcher, "builtin_mlp.py", device="cpu", validate=True, steps=4).runs[0]
    workload = memprof.predict("mlp", optimizers=["adam"], device="cpu").runs[0]
    assert script.peak.allocated_bytes == workload.peak.allocated_bytes
    assert script.state == workload.state


def test_what_was_made_up_is_said(launcher: Launcher) -> None:
    place = (SCRIPTS / "plain.py").relative_to(Path.cwd())
    (found,) = run(launcher, "plain.py").runs
    warnings = " ".join(found.confidence.warnings)
    assert f"{place}:17 branches on a value that depends on the data: it was taken to be True" in warnings
    assert f"{place}:24 reads a value that depends on the data: it was taken to be 1.0" in warnings
    assert any(note.startswith("The script's own optimizers: AdamW (") for note in found.notes)


def test_the_user_may_say_what_a_value_is(launcher: Launcher) -> None:
    with pytest.raises(memprof.MemprofError, match=r"plain.py raised RuntimeError: the loss is not finite \(.*:18\)"):
        run(launcher, "plain.py", assume={"plain.py:17": False})
    (found,) = run(launcher, "plain.py", assume={"plain.py:999": 1}).runs
    assert any("--assume plain.py:999: nothing there reads a value" in note for note in found.notes)


def test_too_small_a_gpu_is_out_of_memory(launcher: Launcher) -> None:
    (found,) = run(launcher, "plain.py", "4096", budget="8MiB").runs
    assert found.status == "oom"
    assert "8.00 MiB there" in found.reason


def test_another_optimizer_in_its_place(launcher: Launcher) -> None:
    made = run(launcher, "plain.py", optimizers=["as-is", "sm3", "adafactor", "muon"])
    own, sm3, adafactor, muon = made.runs
    assert sm3.state.bytes < adafactor.state.bytes < own.state.bytes
    assert muon.status == "failed"
    assert "Muon" in muon.reason or "2D" in muon.reason


RETRIES = """
import torch
from torch import nn

print("on", torch.cuda.get_device_name(), torch.cuda.mem_get_info())
batch = 1 << 16
while True:
    try:
        model = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)).cuda()
        optimizer = torch.optim.AdamW(model.parameters())
        for step in range(6):
            loss = model(torch.randn(batch, 512, device="cuda")).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print("taken", batch, torch.cuda.max_memory_allocated())
        break
    except torch.OutOfMemoryError:
        batch //= 2
        torch.cuda.empty_cache()
"""


def test_a_script_that_halves_its_batch_finds_what_fits(launcher: Launcher, tmp_path: Path) -> None:
    script, said = tmp_path / "retries.py", tmp_path / "said.txt"
    script.write_text(RETRIES)
    (found,) = run(launcher, script, budget="1GiB", script_output=said).runs
    assert found.status == "ok"
    taken = [line.split() for line in said.read_text().splitlines() if line.startswith("taken")]
    assert {batch for _, batch, _ in taken} == {str(1 << 14)}
    assert int(taken[-1][2]) == found.peak.allocated_bytes <= 1 << 30


def test_accelerate_finds_the_batch_that_fits(launcher: Launcher, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")

    def taken(begin: int) -> tuple[list[int], object]:
        said = tmp_path / f"said-{begin}.txt"
        (found,) = run(launcher, "halves_its_batch.py", str(begin), budget="256MiB", script_output=said).runs
        assert found.status == "ok"
        lines = said.read_text().splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith("taken")], found

    batches, found = taken(4096)
    assert 512 < batches[-1] < 4096
    assert batches == sorted(batches, reverse=True)
    assert batches[-1] == batches[-2]
    (own,) = [note for note in found.notes if note.startswith("The script's own optimizers")]
    assert own.count("AdamW") == 1
    assert own.endswith(" times.")
    again, _ = taken(batches[-1])
    assert set(again) == {batches[-1]}
