"""The pieces that the families share."""

import torch.nn.functional as F
from torch import Tensor, nn

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
    """Return the normalization named ``batch``, ``group``, ``layer`` or ``none``.

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
            # No ReLU stands between a depthwise convolution and the 1 x 1 that follows it.
            if module.groups > 1:
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class StochasticDepth(nn.Module):
    """Drops a residual branch, image by image, while training (Huang et al. 2016).

    What is kept is scaled up by its odds instead of down in evaluation, so that evaluation is the
    plain sum.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        """Share of the images whose branch is dropped, in [0, 1)."""

    def forward(self, branch: Tensor) -> Tensor:
        """Zero the branch, shape (N, ...), of some of the N images."""
        if not self.training or self.rate == 0:
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * (kept / (1 - self.rate))


def drop_rates(rate: float, num_blocks: int) -> list[float]:
    """Return each block's rate; it grows linearly to ``rate`` (Huang et al. 2016, equation 4)."""
    return [rate * (block + 1) / num_blocks for block in range(num_blocks)]


class PatchEmbedding(nn.Module):
    """One convolution over patches side by side: from (N, C, H, W) to (N, C', H / P, W / P).

    Sides that are no multiple of P are padded with zeros at the bottom and on the right.
    """

    def __init__(self, channels_in: int, channels_out: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.projection = nn.Conv2d(channels_in, channels_out, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', ceil(H / P), ceil(W / P))."""
        bottom, right = (-side % self.patch for side in images.shape[2:])
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom))
        return self.projection(images)  # type: ignore[no-any-return]


class SqueezeExcitation(nn.Module):
    """Weighs each channel by a look at the mean of all (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The paper's reduction by 16 leaves a hidden layer of 2 to the narrow nets of small images.
        hidden = max(GROUP_SIZE, channels // 16)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        hidden = self.squeeze(x.mean(dim=(2, 3))).relu()
        shares: Tensor = self.excite(hidden).sigmoid()
        return x * shares[:, :, None, None]


def draw_truncated(model: nn.Module) -> None:
    """Draw weights as transformers do: a normal of deviation 0.02 cut off, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
