"""The pieces that the families share."""

from torch import nn

GROUP_SIZE = 8
"""Channels a group of group norm; every width is a multiple of it."""


def round_width(width: float) -> int:
    """Round a number of channels to the nearest multiple of ``GROUP_SIZE``, at least one."""
    return GROUP_SIZE * max(1, int(width / GROUP_SIZE + 0.5))


def can_halve(side: int) -> bool:
    """Whether a map of this side in pixels keeps at least 2 x 2 pixels when it is halved.

    Batch norm could not tell the images of a small batch apart on less, and a 3 x 3 kernel would
    mostly see padding.
    """
    return side >= 4


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Give the normalization named ``batch``, ``group``, ``layer`` or ``none``.

    ``group`` is that of Wu & He (2018) with ``GROUP_SIZE`` channels a group; ``layer`` is its case
    of one group, over channels and pixels.
    """
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(channels // GROUP_SIZE, channels)
        case "layer":
            return nn.GroupNorm(1, channels)
        case "none":
            return nn.Identity()
    raise ValueError(f"unknown norm {kind!r}")


def initialize(model: nn.Module) -> None:
    """Draw the convolutions after He et al. (2015), so that ReLU keeps the scale of its input."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
