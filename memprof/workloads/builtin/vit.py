"""Vision Transformer B/16 (Dosovitskiy et al. 2021), with the layers of torchvision's vit_b_16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprof.errors import UsageError
from memprof.workloads.builtin.layers import Attention, head_width
from memprof.workloads.workload import Workload


class ViTBlock(nn.Module):
    """Attention and a GELU MLP, each after a layer norm and inside a residual."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model, eps=1e-6)
        self.attention = Attention(d_model, n_heads)
        self.ln_2 = nn.LayerNorm(d_model, eps=1e-6)
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, length, d_model] to the same shape."""
        x = x + self.attention(self.ln_1(x))
        out: Tensor = x + self.down(F.gelu(self.up(self.ln_2(x))))
        return out


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, pre-norm blocks, and a linear classifier on the class token."""

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        image_size: int,
        patch_size: int,
        n_classes: int,
    ) -> None:
        super().__init__()
        length = (image_size // patch_size) ** 2 + 1
        self.patches = nn.Conv2d(3, d_model, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, d_model))
        self.positions = nn.Parameter(torch.empty(1, length, d_model).normal_(std=0.02))
        self.blocks = nn.ModuleList(ViTBlock(d_model, n_heads, d_ff) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model, eps=1e-6)
        self.classifier = nn.Linear(d_model, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, 3, image_size, image_size] to logits [batch, n_classes]."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(self.norm(x)[:, 0])
        return logits


def vit_b16(
    n_layers: int = 12,
    d_model: int = 768,
    n_heads: int = 12,
    d_ff: int = 3072,
    image_size: int = 224,
    patch_size: int = 16,
    n_classes: int = 1000,
) -> Workload:
    """Vision Transformer B/16 image classifier.

    Args:
        n_layers: The number of transformer blocks.
        d_model: The width of the residual stream.
        n_heads: The number of attention heads; it must divide `d_model`.
        d_ff: The width of the MLP.
        image_size: The height and width of an image in pixels; a multiple of `patch_size`.
        patch_size: The height and width of a patch in pixels.
        n_classes: The number of classes.

    Returns:
        The workload.

    Raises:
        UsageError: The heads do not divide the width, or the patches do not divide the image.
    """
    head_width(d_model, n_heads)
    if image_size % patch_size:
        raise UsageError(f"patch_size={patch_size} does not divide image_size={image_size}; set one to match")

    def model() -> nn.Module:
        return VisionTransformer(n_layers, d_model, n_heads, d_ff, image_size, patch_size, n_classes)

    def batch(batch_size: int) -> dict[str, Tensor]:
        return {
            "images": torch.randn(batch_size, 3, image_size, image_size),
            "labels": torch.randint(n_classes, (batch_size,)),
        }

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["images"]), batch["labels"])

    return Workload(model=model, batch=batch, loss=loss, scale="n_layers")
