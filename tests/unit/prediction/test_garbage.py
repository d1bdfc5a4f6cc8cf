"""Predictions run without the garbage collector, and leave it as they found it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from memprof.devices.target import Target
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.prediction.gc_pause import no_garbage_collection
from memprof.prediction.run import predict_runs


class Knot:
    """An object that only the collector can end."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.enable()
    gc.unfreeze()
    yield
    gc.unfreeze()
    if not enabled:
        gc.disable()


def test_it_is_off_meanwhile_and_on_again() -> None:
    with no_garbage_collection():
        assert not gc.isenabled()
        with no_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_who_had_it_off_has_it_off_again() -> None:
    gc.disable()
    with no_garbage_collection():
        pass
    assert not gc.isenabled()


def test_a_collection_asked_for_meanwhile_ends_what_is_new() -> None:
    old = weakref.ref(Knot())
    with no_garbage_collection():
        new = weakref.ref(Knot())
        gc.collect()
        assert new() is None
        assert old() is not None
    gc.collect()
    assert old() is None


def test_what_was_left_out_before_stays_so() -> None:
    gc.freeze()
    with no_garbage_collection():
        pass
    assert gc.get_freeze_count() > 0


def test_nothing_is_left_out_afterwards_that_was_not_before() -> None:
    with no_garbage_collection():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("model", ["mlp", "no-such-model"])
def test_a_prediction_leaves_the_collector_as_it_was(model: str) -> None:
    workload = WorkloadSpec(model=model, knobs={"n_layers": 1} if model == "mlp" else {})
    try:
        predict_runs(workload, [parse_optimizer("sgd")], Recipe(), 1, Target())
    except UsageError:
        assert model != "mlp"
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
