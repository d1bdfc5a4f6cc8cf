"""`hf:` models where transformers is not installed: this runs with and without it."""

from __future__ import annotations

import sys

import pytest

from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.workloads.loader import load_workload


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"^hf:gpt2 needs transformers: pip install 'sm3-memprof\[hf\]'$"):
        load_workload(WorkloadSpec(model="hf:gpt2"))
