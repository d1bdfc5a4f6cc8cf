"""Records the allocator's peaks of ranks under DDP and FSDP2, trained with PyTorch's CUDA code: run as a module.

Needs what `record_models` needs. Writes ranks.json; the GPU is said to be an A100.
"""

from __future__ import annotations

from tests.data.allocator.programs import HERE
from tests.data.allocator.record_models import record

COMMAND = "python -m tests.data.allocator.record_ranks"
FILE = HERE / "ranks.json"


def main() -> None:
    record("real_ranks", FILE, COMMAND)


if __name__ == "__main__":
    main()
