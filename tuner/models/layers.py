"""Layers and functions that the families share."""

import torch.nn.functional as F
from torch import Tensor, nn

GROUP_SIZE = 8
"""Channels per group of group norm; every width is a multiple of it."""


def round_width(width: float) -> int:
    """Round a number of channels to the nearest multiple of ``GROUP_SIZE``, at least one."""
    return GROUP_SIZE * max(1, int(width / GROUP_SIZE + 0.5))


def can_halve(side: int) -> bool:
    """Whether a feature map of this side in pixels keeps at least 2 x 2 pixels when halved.

    With fewer, batch norm could not distinguish the images of a small batch, and a 3 x 3 kernel
    would mostly see padding.
    """
    return side >= 4


def num_weights(module: nn.Module) -> int:
    """Count the parameters of a module, including frozen ones."""
    return sum(parameter.numel() for parameter in module.parameters())


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Return the normalization named ``batch``, ``group``, ``layer`` or ``none``.

    ``group`` is that of Wu & He (2018) with ``GROUP_SIZE`` channels per group; ``layer`` has one
    group, over channels and pixels.
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
    """Initialize the convolutions as in He et al. (2015), so that ReLU keeps the input's scale."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # There is no ReLU between a depthwise convolution and the 1 x 1 that follows it.
            if module.groups > 1:
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class StochasticDepth(nn.Module):
    """Drops a residual branch at random for each image in training (Huang et al. 2016).

    Kept branches are scaled up by their odds in training instead of down in evaluation, so that
    evaluation is the plain sum.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        """Share of the images whose branch is dropped, in [0, 1)."""

    def forward(self, branch: Tensor) -> Tensor:
        """Zero the branch, shape (N, ...), for some of the N images."""
        if not self.training or self.rate == 0:
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * (kept / (1 - self.rate))


def drop_rates(rate: float, num_blocks: int) -> list[float]:
    """Return each block's rate, growing linearly to ``rate`` (Huang et al. 2016, equation 4)."""
    return [rate * (block + 1) / num_blocks for block in range(num_blocks)]


class PatchEmbedding(nn.Module):
    """One convolution over adjacent patches: (N, C, H, W) to (N, C', H / P, W / P).

    Sides that are not a multiple of P are padded with zeros at the bottom and on the right.
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
    """Weights each channel based on the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The paper's reduction by 16 would leave narrow nets for small images a hidden layer of 2.
        hidden = max(GROUP_SIZE, channels // 16)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        hidden = self.squeeze(x.mean(dim=(2, 3))).relu()
        shares: Tensor = self.excite(hidden).sigmoid()
        return x * shares[:, :, None, None]


def draw_truncated(model: nn.Module) -> None:
    """Draw weights as in transformers: a truncated normal of deviation 0.02, with zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
