"""What memprof itself asks of tensors is seen by no torch function mode: such a mode costs more than the answer."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.cuda.host_and_device import CudaIsHere
from memprof.prediction.fake.modules import unwatched
from memprof.prediction.run import predict_runs

OPTIMIZERS = ("sm3,momentum=0.9", "adam", "adafactor")


class Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_what_is_asked_but_not_within() -> None:
    tensor = torch.zeros(3)
    with Watch() as watch:
        assert tensor.shape == (3,)
        before = watch.seen
        with unwatched():
            assert tensor.untyped_storage().nbytes() == 12
        assert (before, watch.seen) == (1, 1)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(step_in_backward=True)], ids=["plain", "step-in-backward"])
def test_labels_and_states_are_read_unwatched(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    callers: Counter[str] = Counter()
    original = CudaIsHere.__torch_function__

    def counted(self: CudaIsHere, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        callers[sys._getframe(1).f_globals["__name__"]] += 1
        return original(self, func, types, args, kwargs)

    monkeypatch.setattr(CudaIsHere, "__torch_function__", counted)
    specs = [parse_optimizer(text) for text in OPTIMIZERS]
    workload = WorkloadSpec(model="gpt2", knobs={"n_layers": 1, "d_model": 32, "n_heads": 2, "seq_len": 8})
    predict_runs(workload, specs, recipe, 1, target_of(find_device("rtx-4090")))
    assert callers["torch.optim._adafactor"] > 0
    reading = {"memprof.optimizers.state_bytes", "memprof.training.labels", "memprof.training.counts"}
    assert not {*reading, "memprof.trace.storages"} & set(callers)
