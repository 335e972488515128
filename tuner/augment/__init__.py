"""Augment whole batches on their own device, each image with its own draw.

Nothing here loops over images or waits for the device. Images are (N, C, H, W), random numbers come
from the given generator, which is on the images' device, and no argument is changed in place.
``geometry`` moves and erases pixels, ``colour`` changes their values, ``policies`` draws from both,
and ``mixing`` blends images with one another.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tuner.augment.colour import colour_jitter, normalize, per_channel
from tuner.augment.geometry import (
    cutout,
    mirror,
    random_crop,
    random_erasing,
    random_sides,
    why_not_crop,
)
from tuner.augment.mixing import blend, cutmix_share, mixup_share
from tuner.augment.policies import rand_augment, trivial_augment
from tuner.config import Augment

__all__ = ["augment_batch", "normalize", "per_channel", "random_sides", "why_not_crop"]


def augment_batch(
    images: Tensor,
    labels: Tensor,
    *,
    settings: Augment,
    num_classes: int,
    mean: Tensor,
    std: Tensor,
    generator: Generator,
    is_mirrored: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Turn a batch of the data set into what a model trains on.

    Crop, flip, policy and colour jitter work on bytes. Then the images are normalized, followed by
    cutout, random erasing and one of mixup and cutmix. torchvision's own training recipes use this
    order.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,), below ``num_classes``; or rows of numbers, such as class
            probabilities, that are blended like the images, float32, shape (N, any).
        settings: What to do; settings that are 0, false or ``none`` are skipped.
        num_classes: K.
        mean: Per channel, of values scaled to [0, 1], shape (1, C, 1, 1).
        std: As ``mean``.
        generator: Source of all random numbers, on the images' device.
        is_mirrored: Which images ``settings.flip`` mirrors, bool, shape (N,); by default
            each one with probability 0.5.

    Returns:
        The normalized float32 images, and the targets: ``labels`` unchanged or, under mixup or
        cutmix, blended; blended classes are probabilities of shape (N, K). ``cross_entropy``
        takes both.

    Raises:
        ValueError: If the crop's padding is not smaller than the images.
    """
    if settings.crop:
        images = random_crop(images, settings.crop, generator)
    if settings.flip:
        sides = random_sides(len(images), generator) if is_mirrored is None else is_mirrored
        images = mirror(images, sides)
    match settings.policy:
        case "randaugment":
            images = rand_augment(images, settings.num_ops, settings.magnitude, generator)
        case "trivialaugment":
            images = trivial_augment(images, generator)
    images = colour_jitter(
        images,
        brightness=settings.brightness,
        contrast=settings.contrast,
        saturation=settings.saturation,
        hue=settings.hue,
        generator=generator,
    )
    images = normalize(images, mean, std)
    if settings.cutout:
        images = cutout(images, settings.cutout, generator)
    if settings.erasing:
        images = random_erasing(images, settings.erasing, generator)

    shares = []
    if settings.mixup:
        shares.append(mixup_share(images, settings.mixup, generator))
    if settings.cutmix:
        shares.append(cutmix_share(images, settings.cutmix, generator))
    if not shares:
        return images, labels
    share = shares[0]
    if len(shares) == 2:
        # Picking on the device costs a map of one image; an `if` would wait for the coin.
        coin = torch.rand((), generator=generator, device=images.device) < 0.5
        share = torch.where(coin, shares[0], shares[1])
    if labels.ndim == 1:
        labels = F.one_hot(labels, num_classes).to(images.dtype)
    return blend(images, labels, share)
