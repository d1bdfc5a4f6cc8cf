"""Builders of optimizers whose parameter groups carry options of their own; the table beside names them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer


def galore(params: Iterable[nn.Parameter], rank: int = 128, lr: float = 1e-3) -> Optimizer:
    """GaLore's own AdamW with the projection of its README."""
    from galore_torch import GaLoreAdamW

    group: dict[str, Any] = {"rank": rank, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    return GaLoreAdamW([{"params": list(params), **group}], lr=lr)


def apollo(params: Iterable[nn.Parameter], rank: int = 128, lr: float = 1e-3) -> Optimizer:
    """APOLLO; rank 1 with the tensor scale is APOLLO-Mini."""
    from apollo_torch import APOLLOAdamW

    scale = {"scale_type": "tensor", "scale": 128} if rank == 1 else {"scale_type": "channel", "scale": 1}
    group: dict[str, Any] = {
        "rank": rank,
        "proj": "random",
        "update_proj_gap": 200,
        "proj_type": "std",
        **scale,
    }
    return APOLLOAdamW([{"params": list(params), **group}], lr=lr)


def pytorch_galore(params: Iterable[nn.Parameter], rank: int = 128, lr: float = 1e-3) -> Optimizer:
    """pytorch_optimizer's GaLore."""
    from pytorch_optimizer import GaLore

    group: dict[str, Any] = {"rank": rank, "update_proj_gap": 200, "scale": 0.25, "projection_type": "std"}
    return GaLore([{"params": list(params), **group}], lr=lr)
