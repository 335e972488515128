"""Blend images with one another: mixup and cutmix."""

import torch
from torch import Generator, Tensor

from tuner.augment.geometry import is_within


def mixup_share(images: Tensor, alpha: float, generator: Generator) -> Tensor:
    """Draw the share that an image keeps of itself under mixup, one for the batch.

    Zhang et al. 2018, arXiv 1710.09412.

    Args:
        images: The batch, for its device and dtype.
        alpha: Parameter of the Beta(alpha, alpha) distribution, above 0.
        generator: On the images' device.

    Returns:
        A share in [0, 1], shape (1, 1), for ``blend``.
    """
    # In float64, because a small alpha draws numbers that float32 would round to 0.
    concentration = torch.full((2,), alpha, dtype=torch.float64, device=images.device)
    # A Beta variate is the first of two Dirichlet ones; only the latter take a generator.
    beta = torch._sample_dirichlet(concentration, generator)[:1, None]
    return beta.to(images.dtype)


def cutmix_share(images: Tensor, alpha: float, generator: Generator) -> Tensor:
    """Draw the pixels that an image keeps of itself under cutmix, one box for the batch.

    The box covers 1 - Beta(alpha, alpha) of the image before it is cut at the border; its middle
    is any pixel, equally likely (Yun et al. 2019, arXiv 1905.04899).

    Args:
        images: The batch, for its size, device and dtype.
        alpha: Parameter of the Beta distribution, above 0.
        generator: On the images' device.

    Returns:
        0 inside the box and 1 outside, shape (H, W), for ``blend``.
    """
    side = (1 - mixup_share(images, alpha, generator)[0]).sqrt()
    inside = []
    for length in images.shape[2:]:
        middle = torch.randint(length, (1,), generator=generator, device=images.device)
        half = (side * length / 2).long()
        inside.append(is_within(length, middle - half, middle + half))
    rows, columns = inside
    return (~(rows[:, None] & columns)).to(images.dtype)


def blend(images: Tensor, targets: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Blend each image and its targets with the one before it in the batch.

    Batches are shuffled, so the one before is as good as a random one.

    Args:
        images: Floating point, shape (N, C, H, W).
        targets: Class probabilities, shape (N, K).
        share: What each pixel keeps of its own image, in [0, 1]; broadcasts to (H, W).

    Returns:
        The blended images and targets; a target keeps the mean share of its pixels.
    """
    return (
        torch.lerp(images.roll(1, 0), images, share),
        torch.lerp(targets.roll(1, 0), targets, share.mean()),
    )
