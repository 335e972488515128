"""A fast network like those of today's CIFAR-10 speed records.

Its history: Page (2018, "How to train your ResNet") put a fixed whitening of patches before a few
wide stages; tysam-code's hlb-CIFAR10 (2023) made the patches 2 x 2 and the activation GELU; Jordan
(2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", airbench) added the identity
initialization and, for the slower and better nets, a third convolution with a shortcut. This is a
new implementation of that paper's section 3 and appendix; the defaults match its airbench94.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuner.models.layers import can_halve, round_width
from tuner.models.params import SpeedNetParams

WHITENING_FLOOR = 5e-4
"""Added to the variance of each direction, so that directions without signal are not amplified
without bound (airbench's value, for images of variance 1)."""
NORM_MOMENTUM = 0.4
"""Momentum of the batch statistics; a few hundred steps need a fast one (airbench's value)."""


class SpeedNet(nn.Module):
    """Whitened patches, stages of convolution, pooling, norm and GELU, the maximum, a classifier.

    ``fit_to`` sets the first layer's weights; without it that layer merely copies patches.

    Args:
        params: The choices.
        num_classes: K.
        image_shape: (C, H, W).
    """

    def __init__(
        self, params: SpeedNetParams, num_classes: int, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.whitening = Whitening(image_shape[0], params.whitening_kernel)
        channels = len(self.whitening.bias)
        side = min(image_shape[1:]) - params.whitening_kernel + 1
        stages: list[nn.Module] = []
        for stage in range(params.stages):
            width = round_width(params.width * (params.widening if stage else 1))
            halve = can_halve(side)
            side //= 2 if halve else 1
            stages.append(Stage(channels, width, params.convolutions, halve))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(channels, num_classes, bias=False)
        self.logit_scale = params.logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (N, K), for normalized images, shape (N, C, H, W)."""
        features = self.stages(F.gelu(self.whitening(images)))
        return self.classifier(self.pool(features).flatten(1)) * self.logit_scale  # type: ignore[no-any-return]

    def fit_to(self, images: Tensor) -> None:
        """Compute the first layer's weights from training images; see ``FitsImages``."""
        self.whitening.fit_to(images)


class Whitening(nn.Module):
    """Projects each patch onto the principal directions of all, with variance 1 and both signs.

    The two signs let the following activation keep what it would cut off. The weights are not
    parameters: only the bias is trained.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        patch = channels * kernel**2
        self.weight: Tensor
        self.register_buffer("weight", _both_signs(torch.eye(patch), channels, kernel))
        self.bias = nn.Parameter(torch.zeros(2 * patch))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 2 C kernel^2, H - kernel + 1, W - kernel + 1)."""
        return F.conv2d(images, self.weight, self.bias)

    @torch.no_grad()
    def fit_to(self, images: Tensor) -> None:
        """Set the weights to the whitening of these images' patches.

        Products of patches are float32, their sums over all parts and what follows float64.
        """
        _, channels, kernel, _ = self.weight.shape
        size = channels * kernel**2
        total = torch.zeros(size, size, dtype=torch.float64, device=images.device)
        num_patches = 0
        # In parts, because the patches of all images together take kernel^2 times their memory.
        for start in range(0, len(images), 256):
            part = images[start : start + 256].float()
            patches = F.unfold(part, kernel).transpose(0, 1).flatten(1)
            total += (patches @ patches.T).double()
            num_patches += patches.shape[1]
        variances, directions = torch.linalg.eigh(total.cpu() / num_patches)
        scales = (variances.clamp(min=0) + WHITENING_FLOOR).rsqrt()
        rows = (directions * scales).T.flip(0)  # The strongest direction first.
        # The sign of an eigenvector depends on the library; ours has a positive largest entry.
        largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
        self.weight.copy_(_both_signs((rows * largest.sign()).float(), channels, kernel))


def _both_signs(rows: Tensor, channels: int, kernel: int) -> Tensor:
    return torch.cat([rows, -rows]).view(-1, channels, kernel, kernel)


class Stage(nn.Module):
    """Convolution, max pooling, norm and GELU; then one or two more without the pooling."""

    def __init__(self, channels_in: int, channels_out: int, convolutions: int, halve: bool) -> None:
        super().__init__()
        self.conv1 = _identity_convolution(channels_in, channels_out)
        self.pool = nn.MaxPool2d(2) if halve else nn.Identity()
        self.norm1 = ShiftNorm(channels_out)
        self.conv2 = _identity_convolution(channels_out, channels_out)
        self.norm2 = ShiftNorm(channels_out)
        self.has_shortcut = convolutions == 3
        if self.has_shortcut:
            self.conv3 = _identity_convolution(channels_out, channels_out)
            self.norm3 = ShiftNorm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        x = F.gelu(self.norm1(self.pool(self.conv1(x))))
        y = F.gelu(self.norm2(self.conv2(x)))
        if self.has_shortcut:
            y = F.gelu(self.norm3(self.conv3(y)) + x)
        return y


def _identity_convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution whose first ``channels_in`` outputs equal its inputs at first."""
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:channels_in])
    return conv


class ShiftNorm(nn.BatchNorm2d):
    """Batch norm that learns a shift but no scale, which the next convolution already has."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=NORM_MOMENTUM)
        del self.weight
        # A buffer of ones instead of none: cuDNN's kernel takes both weight and bias, or neither.
        self.register_buffer("weight", torch.ones(channels))
