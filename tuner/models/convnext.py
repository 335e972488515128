"""ConvNeXt (Liu et al. 2022) with a stem and a number of stages that fit small images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuner.models.layers import (
    PatchEmbedding,
    StochasticDepth,
    can_halve,
    draw_truncated,
    drop_rates,
    round_width,
)
from tuner.models.params import ConvNeXtParams


class ConvNeXt(nn.Module):
    """Patches, stages of blocks with a halving between them, the mean over pixels, a classifier.

    Args:
        params: The choices.
        num_classes: K.
        image_shape: (C, H, W).
    """

    def __init__(
        self, params: ConvNeXtParams, num_classes: int, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        width = round_width(params.width)
        self.stem = nn.Sequential(
            PatchEmbedding(image_shape[0], width, params.patch), ChannelNorm(width)
        )
        side = -(-min(image_shape[1:]) // params.patch)
        rates = iter(drop_rates(params.stochastic_depth, params.stages * params.blocks))
        layers: list[nn.Module] = []
        for stage in range(params.stages):
            if stage > 0:
                halving = 2 if can_halve(side) else 1
                side //= halving
                layers += [ChannelNorm(width), nn.Conv2d(width, 2 * width, halving, halving)]
                width *= 2
            layers += [Block(params, width, next(rates)) for _ in range(params.blocks)]
        self.stages = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.classifier = nn.Linear(width, num_classes)
        draw_truncated(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (N, K), for normalized images, shape (N, C, H, W)."""
        features = self.pool(self.stages(self.stem(images))).flatten(1)
        return self.classifier(self.norm(features))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A depthwise convolution, then an MLP at each pixel, scaled and added (figure 4)."""

    def __init__(self, params: ConvNeXtParams, width: int, drop_rate: float) -> None:
        super().__init__()
        side = params.kernel
        self.depthwise = nn.Conv2d(width, width, side, padding=side // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), params.layer_scale))
        self.drop = StochasticDepth(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.contract(F.gelu(self.expand(y))) * self.scale
        return x + self.drop(y.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
