"""Residual networks of basic blocks (He et al. 2016a) with a stem that fits small images."""

from torch import Tensor, nn

from tuner.models.layers import can_halve, initialize, norm_layer, round_width
from tuner.models.params import ResNetParams

LAYOUTS: dict[int, tuple[int, tuple[int, ...]]] = {
    10: (64, (1, 1, 1, 1)),
    18: (64, (2, 2, 2, 2)),
    34: (64, (3, 4, 6, 3)),
    20: (16, (3, 3, 3)),
    32: (16, (5, 5, 5)),
    44: (16, (7, 7, 7)),
    56: (16, (9, 9, 9)),
}
"""Depth -> channels of the first stage, and blocks per stage: first the paper's ImageNet nets (its
table 1), then its CIFAR nets (its section 4.2)."""


class ResNet(nn.Module):
    """A 3 x 3 stem without pooling, stages of basic blocks, the mean over pixels, a classifier.

    Shortcuts between stages are 1 x 1 convolutions (the paper's option B), in the CIFAR nets too.

    Args:
        params: The choices.
        num_classes: K.
        image_shape: (C, H, W).
    """

    def __init__(
        self, params: ResNetParams, num_classes: int, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        base, stages = LAYOUTS[params.depth]
        channels = round_width(base * params.width_factor)
        block_type = PreactivationBlock if params.preactivation else BasicBlock
        self.stem = nn.Sequential(nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=False))
        if not params.preactivation:
            self.stem.extend([norm_layer(params.norm, channels), nn.ReLU()])
        side = min(image_shape[1:])
        blocks: list[BasicBlock | PreactivationBlock] = []
        for stage, num_blocks in enumerate(stages):
            width = round_width(base * params.width_factor * 2**stage)
            stride = 2 if stage > 0 and can_halve(side) else 1
            side //= stride
            for block in range(num_blocks):
                blocks.append(block_type(params.norm, channels, width, stride if block == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        if params.preactivation:
            self.blocks.extend([norm_layer(params.norm, channels), nn.ReLU()])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(params.dropout), nn.Linear(channels, num_classes)
        )
        initialize(self)
        for block_module in blocks:
            # Each branch starts at zero: the signal first passes only through the shortcuts, which
            # stabilizes early steps at high learning rates (Goyal et al. 2017, section 5.1).
            if isinstance(block_module, BasicBlock):
                nn.init.zeros_(block_module.norm2.weight)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (N, K), for normalized images, shape (N, C, H, W)."""
        features = self.blocks(self.stem(images))
        return self.classifier(self.pool(features).flatten(1))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut around them (He et al. 2016a, figure 5, left)."""

    def __init__(self, norm: str, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = norm_layer(norm, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, channels_out)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                norm_layer(norm, channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu(y + self.shortcut(x))  # type: ignore[no-any-return]


class PreactivationBlock(nn.Module):
    """Norm and ReLU before each 3 x 3 convolution, and a clean sum (He et al. 2016b, figure 4e).

    Where the shape changes, the shortcut reads the first norm's output, as in the paper's code.
    """

    def __init__(
        self, norm: str, channels_in: int, channels_out: int, stride: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(norm, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm2 = norm_layer(norm, channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        active = self.relu(self.norm1(x))
        y = self.dropout(self.relu(self.norm2(self.conv1(active))))
        return self.conv2(y) + (x if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]
