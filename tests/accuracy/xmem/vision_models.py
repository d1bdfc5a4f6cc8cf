"""The CNN workloads of the measured runs: torchvision's constructors, no weights, images of 3 x 86 x 86."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memprof import Workload

SIDE = 86
LABELS = 10
# Name in the table: torchvision's constructor and its options. Where the head's size is not given it is 1,000.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "VGG16": ("vgg16", {}),
    "VGG19": ("vgg19", {}),
    "ResNet101": ("resnet101", {}),
    "ResNet152": ("resnet152", {}),
    "MobileNetV2": ("mobilenet_v2", {}),
    "MnasNet": ("mnasnet1_0", {"num_classes": 10}),
    "MobeNetV3Small": ("mobilenet_v3_small", {"num_classes": 10}),
    "MobeNetV3Large": ("mobilenet_v3_large", {"num_classes": 10}),
    "ConvNeXtTiny": ("convnext_tiny", {}),
    "ConvNeXtBase": ("convnext_base", {}),
    "RegNetX400MF": ("regnet_x_400mf", {}),
    "RegNetY400MF": ("regnet_y_400mf", {}),
}


@cache
def torchvision_models() -> Any:
    """Return `torchvision.models`; its compiled operators are not needed, but two of them have to have a schema."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torchvision_models.keep = library  # type: ignore[attr-defined]  # a schema lives as long as its library
    import torchvision.models  # type: ignore[import-untyped, import-not-found, unused-ignore]

    return torchvision.models


def vision_model(name: str) -> Workload:
    """Return a CNN of the table."""
    constructor, options = MODELS[name]

    def batch(batch_size: int) -> dict[str, Tensor]:
        return {"images": torch.randn(batch_size, 3, SIDE, SIDE), "labels": torch.randint(LABELS, (batch_size,))}

    return Workload(
        model=lambda: getattr(torchvision_models(), constructor)(**options), batch=batch, loss=_kept_output()
    )


def _kept_output() -> Callable[[nn.Module, Any], Tensor]:
    """The runs' loop keeps the outputs in a local variable until the next forward pass has returned."""
    kept: list[Tensor | None] = [None]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = model(batch["images"])
        kept[0] = outputs
        return F.cross_entropy(outputs, batch["labels"])

    return loss
