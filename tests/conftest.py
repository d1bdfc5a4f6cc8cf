"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from memprof.workers.launcher import Launcher

# Before torch is imported: threads that spin while they wait are slow on a machine that does other things as well.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A slow machine is no fault of the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# These files train the same models with the same optimizers, each only once where one process runs them.
SAME_TRAININGS = ("tests/accuracy/test_contract.py", "tests/accuracy/test_prediction_cpu.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share out files among the processes of `-n 2`, those of the same trainings together."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return SAME_TRAININGS[0] if file in SAME_TRAININGS else file

    return Scheduling(config, log)


@pytest.fixture(scope="module")
def imports_left_out_of_collections() -> Iterator[None]:
    """Lets a garbage collection that a test asks for walk what tests made, not the million objects of libraries."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """One fork server for all tests that run jobs: it imports torch once."""
    with Launcher() as server:
        yield server
