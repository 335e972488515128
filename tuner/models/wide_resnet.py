"""Wide residual networks (Zagoruyko & Komodakis 2016): fewer layers, many channels."""

from torch import Tensor, nn

from tuner.models.layers import can_halve, initialize, norm_layer
from tuner.models.params import WideResNetParams
from tuner.models.resnet import PreactivationBlock

BASE_WIDTHS = (16, 32, 64)
"""Channels of the three stages at a widen factor of 1 (the paper's table 1)."""


class WideResNet(nn.Module):
    """A 3 x 3 stem of 16 channels, three stages of pre-activation blocks, the mean, a classifier.

    Args:
        params: The choices.
        num_classes: K.
        image_shape: (C, H, W).
    """

    def __init__(
        self, params: WideResNetParams, num_classes: int, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        channels = BASE_WIDTHS[0]
        self.stem = nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=False)
        side = min(image_shape[1:])
        blocks: list[nn.Module] = []
        for stage, base in enumerate(BASE_WIDTHS):
            width = base * params.widen_factor
            stride = 2 if stage > 0 and can_halve(side) else 1
            side //= stride
            for _ in range((params.depth - 4) // 6):
                blocks.append(
                    PreactivationBlock(params.norm, channels, width, stride, params.dropout)
                )
                channels, stride = width, 1
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm_layer(params.norm, channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (N, K), for normalized images, shape (N, C, H, W)."""
        features = self.relu(self.norm(self.blocks(self.stem(images))))
        return self.classifier(self.pool(features).flatten(1))  # type: ignore[no-any-return]
