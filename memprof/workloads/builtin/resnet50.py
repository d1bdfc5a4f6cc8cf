"""ResNet-50 (He et al. 2016), with the stride in the 3x3 convolution as torchvision has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprof.workloads.workload import Workload

_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4


def _conv(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norms, inside a residual.

    Args:
        n_in: The number of channels of the input.
        width: The number of channels of the 3x3 convolution; the output has four times as many.
        stride: The stride of the 3x3 convolution.
    """

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        n_out = width * _EXPANSION
        self.conv_1, self.bn_1 = _conv(n_in, width, 1), nn.BatchNorm2d(width)
        self.conv_2, self.bn_2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv_3, self.bn_3 = _conv(width, n_out, 1), nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(_conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, n_in, height, width] to [batch, n_out, height / stride, width / stride]."""
        y = self.relu(self.bn_1(self.conv_1(x)))
        y = self.relu(self.bn_2(self.conv_2(y)))
        y = self.bn_3(self.conv_3(y))
        y += self.shortcut(x)
        out: Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    """A 7x7 stem, four stages of bottlenecks, and a linear classifier on the mean of the last feature map."""

    def __init__(self, blocks: tuple[int, int, int, int], n_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        n_in = 64
        for index, (width, count) in enumerate(zip(_WIDTHS, blocks, strict=True)):
            self.stages.append(_stage(n_in, width, count, stride=1 if index == 0 else 2))
            n_in = width * _EXPANSION
        self.classifier = nn.Linear(n_in, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, 3, height, width] to logits [batch, n_classes]."""
        x = self.pool(self.stem(images))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(n_in: int, width: int, count: int, stride: int) -> nn.Sequential:
    first = Bottleneck(n_in, width, stride)
    return nn.Sequential(first, *(Bottleneck(width * _EXPANSION, width, 1) for _ in range(count - 1)))


def resnet50(n_blocks: int = 6, image_size: int = 224, n_classes: int = 1000) -> Workload:
    """ResNet-50 image classifier.

    Args:
        n_blocks: The number of bottlenecks in the third stage (23 make a ResNet-101). The other stages keep 3, 4 and 3.
        image_size: The height and width of an image in pixels.
        n_classes: The number of classes.

    Returns:
        The workload.
    """

    def model() -> nn.Module:
        return ResNet((3, 4, n_blocks, 3), n_classes)

    def batch(batch_size: int) -> dict[str, Tensor]:
        return {
            "images": torch.randn(batch_size, 3, image_size, image_size),
            "labels": torch.randint(n_classes, (batch_size,)),
        }

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["images"]), batch["labels"])

    return Workload(model=model, batch=batch, loss=loss, scale="n_blocks")
