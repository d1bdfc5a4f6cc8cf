"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from memprof.workers.launcher import Launcher

# Before torch is imported: threads that spin while they wait are slow on a machine that does other things as well.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """One fork server for all tests that run jobs: it imports torch once."""
    with Launcher() as server:
        yield server
