"""An ensemble as one module from pixels to probabilities, built of exportable operations."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tuner.augment import normalize
from tuner.config import Tta
from tuner.metrics.predict import views
from tuner.voting import floored
from tuner.voting.temperature import soften

FixedResize = Literal["squash", "crop", "pad"]
"""How an image becomes square: by a new aspect ratio, by cropping to the middle, or by padding with
black. It is the ``Resize`` of a data set after ``auto`` has chosen."""
MAX_PRECISION = 22
"""Maximum bits of a resize's fixed-point weights."""
TINY = 1e-9
"""Far below the sum of weights of any pixel; that sum is 0 only in the padding."""


class MemberGraph(nn.Module):
    """A network with everything that its vote depends on.

    Args:
        network: From normalized images (N, C, H, W) to logits (N, K).
        file: File of its weights, for messages.
        mean: Mean per channel, shape (1, C, 1, 1).
        std: Deviation per channel, like ``mean``.
        weight: Its share of the vote.
        temperature: Temperature that softens its probabilities.
        floor: Value to which probabilities are raised before that.
        tta: Views of an image whose probabilities it averages.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        file: str,
        mean: Tensor,
        std: Tensor,
        weight: float,
        temperature: float,
        floor: float,
        tta: Tta,
    ) -> None:
        super().__init__()
        self.network = network
        self.file = file
        self.mean: Tensor
        self.std: Tensor
        self.weight: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("weight", torch.tensor(weight))
        self.temperature = temperature
        self.floor = floor
        self.tta: Tta = tta

    def forward(self, pixels: Tensor) -> Tensor:
        """Return probabilities times the weight, (N, K), for images uint8 (N, C, H, W)."""
        inputs = normalize(pixels, self.mean, self.std)
        # All views in one batch, so the graph has a single pass through the network.
        seen = torch.stack(views(inputs, self.tta))
        batch = seen.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        probs = self.network(batch).softmax(dim=1).unflatten(0, (len(seen), -1)).mean(dim=0)
        probs = floored(probs, self.floor)
        return self.weight * soften(probs, self.temperature).float()


class EnsembleGraph(nn.Module):
    """Computes ``Ensemble.predict`` in float32: images in, class probabilities out.

    The networks are shared, not copied, and frozen.

    Args:
        members: At least one; their weights sum to 1.
        image_shape: (C, H, W) of the networks' images; H and W are equal.
        resize: How images of other sizes are resized.
        temperature: Temperature of the vote.
    """

    def __init__(
        self,
        members: Sequence[MemberGraph],
        *,
        image_shape: tuple[int, int, int],
        resize: FixedResize,
        temperature: float,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.channels, self.size, _ = image_shape
        self.resize: FixedResize = resize
        self.temperature = temperature
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities, float32 (N, K), for images, uint8 (N, H, W, C)."""
        pixels = resize(images.permute(0, 3, 1, 2), self.size, self.resize)
        votes = torch.stack([member(pixels) for member in self.members])
        return soften(votes.sum(dim=0), self.temperature).float()


def resize(images: Tensor, size: int, how: FixedResize) -> Tensor:
    """Resize images, uint8 (N, C, H, W), to sides of ``size`` pixels, bit for bit like torch.

    ``F.interpolate(..., mode="bilinear", antialias=True)`` computes uint8 in fixed point, columns
    first, and rounds after each of the two passes. Here each pass is a product with a matrix of
    whole numbers, which float64 sums exactly. The operation itself cannot be exported for sizes
    known only when the graph runs, and ONNX's ``Resize`` rounds differently.
    """
    height, width = (torch.scalar_tensor(n, dtype=torch.float64) for n in images.shape[2:])
    # Tensors, not numbers: a graph could branch on numbers.
    whole = torch.scalar_tensor(size, dtype=torch.float64)
    read, written = (height, width), (whole, whole)
    if how == "crop":
        read = (torch.minimum(height, width),) * 2
    elif how == "pad":
        scale = whole / torch.maximum(height, width)
        written = ((height * scale).round().clamp(min=1), (width * scale).round().clamp(min=1))
    columns, one = _fixed_point_weights(images.shape[3], size, read[1], written[1])
    pixels = ((images.double() @ columns) / one + 0.5).floor()
    rows, one = _fixed_point_weights(images.shape[2], size, read[0], written[0])
    pixels = ((rows.T @ pixels) / one + 0.5).floor()
    return pixels.to(torch.uint8)


def _fixed_point_weights(
    before: int, after: int, read: Tensor, written: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weight of each pixel of the old row in each pixel of the new one, and their unit.

    Args:
        before: Pixels of the old row.
        after: Pixels of the new row.
        read: How many pixels of the old row, in its middle, are resized.
        written: How many pixels of the new row, in its middle, they become.

    Returns:
        Whole numbers as float64, shape (before, after), and the power of 2 that represents 1.
    """
    first_read = ((before - read) / 2).floor()
    first_written = ((after - written) / 2).floor()
    source = torch.arange(before, dtype=torch.float64)[:, None] - first_read
    target = torch.arange(after, dtype=torch.float64) - first_written
    scale = read / written
    # The triangle of bilinear interpolation, widened to a pixel of the result if that is wider.
    distances = source - (target + 0.5) * scale + 0.5
    weights = (1 - (distances * (1 / scale.clamp(min=1))).abs()).clamp(min=0)
    weights = weights * ((source >= 0) & (source < read) & (target >= 0) & (target < written))
    weights = weights / weights.sum(dim=0).clamp(min=TINY)
    # The most bits that keep the largest weight below 2 ** 15: _compute_index_ranges_int16_weights
    # in ATen's UpSampleKernel.cpp.
    powers = 2.0 ** torch.arange(1, MAX_PRECISION + 1, dtype=torch.float64)
    precision = ((weights.max() * powers + 0.5).floor() < 2**15).sum()
    one = 2.0 ** precision.double()
    return (weights * one + 0.5).floor(), one
