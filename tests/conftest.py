"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memprof.training.launcher import Launcher


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """One fork server for all tests that run jobs: it imports torch once."""
    with Launcher() as server:
        yield server
