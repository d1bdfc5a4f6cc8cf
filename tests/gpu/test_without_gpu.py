"""The GPU tests on a machine without a GPU: PyTorch's own CUDA code on a stand-in, where a CUDA build of torch is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests import children
from tests.data.allocator.programs import cuda_python
from tests.gpu.null_gpu import null_gpu

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the tests run on it")
def test_measuring_on_cuda_holds_on_a_stand_in(tmp_path: Path) -> None:
    python = cuda_python()
    if python is None:
        pytest.skip("no CUDA build of torch here (or in MEMPROF_CUDA_TORCH), or no C compiler")
    environment = {**os.environ, **null_gpu(python, tmp_path), "PYTHONPATH": str(HERE.parents[1])}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_cuda.py")]
    done = children.run(command, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
