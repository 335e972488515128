"""RandAugment and TrivialAugment, with a separate operation for every image.

Operations of a kind are computed together: an image gets all of them, but those that are not its
own at the strength that changes nothing.
"""

import functools
from collections.abc import Callable
from enum import IntEnum, auto
from typing import Literal

import torch
from torch import Generator, Tensor

from tuner.augment.colour import (
    NUM_LEVELS,
    adjust,
    equalizing_tables,
    look_up,
    rows_of,
    sharpen,
    stretching_tables,
)
from tuner.augment.geometry import warp

NUM_BINS = 31
"""Number of magnitudes of an operation, evenly spaced from nothing to the most."""


class Operation(IntEnum):
    """An operation on an image; names and units of magnitudes are torchvision's."""

    IDENTITY = 0
    SHEAR_X = auto()
    SHEAR_Y = auto()
    TRANSLATE_X = auto()
    TRANSLATE_Y = auto()
    ROTATE = auto()
    BRIGHTNESS = auto()
    COLOR = auto()
    CONTRAST = auto()
    SHARPNESS = auto()
    POSTERIZE = auto()
    SOLARIZE = auto()
    AUTO_CONTRAST = auto()
    EQUALIZE = auto()


SIGNED = range(Operation.SHEAR_X, Operation.SHARPNESS + 1)
"""Operations that go in either direction, with probability 0.5 each."""


def trivial_augment(images: Tensor, generator: Generator) -> Tensor:
    """Apply one operation at one magnitude to each image, both equally likely.

    The "wide" space of Müller & Hutter 2021, arXiv 2103.10158, as in torchvision.

    Args:
        images: uint8, shape (N, C, H, W).
        generator: On the images' device.
    """
    size, device = (len(images),), images.device
    operations = torch.randint(len(Operation), size, generator=generator, device=device)
    signs = torch.randint(2, size, generator=generator, device=device)
    bins = torch.randint(NUM_BINS, size, generator=generator, device=device)
    table = magnitudes("trivialaugment", *images.shape[2:], device)
    return apply_operations(images, operations, table[operations, signs, bins])


def rand_augment(images: Tensor, num_ops: int, magnitude: int, generator: Generator) -> Tensor:
    """Apply several operations to each image one after another, each equally likely.

    Cubuk et al. 2020, arXiv 1909.13719, as in torchvision.

    Args:
        images: uint8, shape (N, C, H, W).
        num_ops: Operations per image.
        magnitude: Magnitude of all of them, in bins from 0 to 30.
        generator: On the images' device.
    """
    size, device = (len(images),), images.device
    table = magnitudes("randaugment", *images.shape[2:], device)[:, :, magnitude]
    for _ in range(num_ops):
        operations = torch.randint(len(Operation), size, generator=generator, device=device)
        signs = torch.randint(2, size, generator=generator, device=device)
        images = apply_operations(images, operations, table[operations, signs])
    return images


def apply_operations(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Apply its own operation to each image.

    Args:
        images: uint8, shape (N, C, H, W).
        operations: Values of ``Operation``, int64, shape (N,).
        magnitudes: With their signs, in the units of ``magnitudes``, shape (N,).
    """
    result = images.clone()
    for function, members in KINDS.items():
        low, high = members
        rows = rows_of((operations >= low) & (operations <= high))
        result[rows] = function(result[rows], operations[rows], magnitudes[rows])
    return result


def _move(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Shear, shift or rotate."""
    of = functools.partial(_strength, operations, magnitudes)
    height, width = images.shape[2:]
    shear_x, shear_y = of(Operation.SHEAR_X), of(Operation.SHEAR_Y)
    angle = of(Operation.ROTATE).deg2rad()
    cos, sin = angle.cos(), angle.sin()
    # Shears keep the first row or column in place, as PIL's do; rotations keep the middle.
    matrices = [
        *(cos, shear_x - sin, shear_x * (height / 2) - of(Operation.TRANSLATE_X).trunc()),
        *(shear_y + sin, cos, shear_y * (width / 2) - of(Operation.TRANSLATE_Y).trunc()),
    ]
    moved = warp(images.float(), torch.stack(matrices, dim=1).view(-1, 2, 3))
    return moved.to(images.dtype)


def _enhance(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Change brightness, contrast or saturation."""
    of = functools.partial(_strength, operations, magnitudes)
    brightness, contrast = of(Operation.BRIGHTNESS), of(Operation.CONTRAST)
    enhanced = adjust(images.float(), brightness, contrast, of(Operation.COLOR))
    return enhanced.to(images.dtype)


def _sharpen(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    strength = _strength(operations, magnitudes, Operation.SHARPNESS)
    return sharpen(images.float(), strength).to(images.dtype)


def _map_levels(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Posterize, solarize or stretch the contrast."""
    of = functools.partial(_strength, operations, magnitudes)
    levels = torch.arange(NUM_LEVELS, dtype=torch.float32, device=images.device)
    coarseness = torch.exp2(8 - of(Operation.POSTERIZE, 8.0).trunc())[:, None]
    tables = (levels / coarseness).floor_() * coarseness
    threshold = 255 * of(Operation.SOLARIZE, 2.0)[:, None]
    tables = torch.where(levels >= threshold, 255 - levels, tables)[:, None]
    is_stretched = (operations == Operation.AUTO_CONTRAST)[:, None, None]
    return look_up(images, torch.where(is_stretched, stretching_tables(images), tables))


def _equalize(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    is_equalized = (operations == Operation.EQUALIZE)[:, None, None, None]
    return torch.where(is_equalized, look_up(images, equalizing_tables(images)), images)


KINDS: dict[Callable[[Tensor, Tensor, Tensor], Tensor], tuple[Operation, Operation]] = {
    _move: (Operation.SHEAR_X, Operation.ROTATE),
    _enhance: (Operation.BRIGHTNESS, Operation.CONTRAST),
    _sharpen: (Operation.SHARPNESS, Operation.SHARPNESS),
    _map_levels: (Operation.POSTERIZE, Operation.AUTO_CONTRAST),
    _equalize: (Operation.EQUALIZE, Operation.EQUALIZE),
}
"""Function -> the first and the last operation that it computes; others stay unchanged."""


def _strength(
    operations: Tensor, magnitudes: Tensor, operation: Operation, otherwise: float = 0.0
) -> Tensor:
    """Return the magnitudes of images with that operation, and one of no effect for others."""
    return torch.where(operations == operation, magnitudes, otherwise)


@functools.cache
def magnitudes(
    policy: Literal["randaugment", "trivialaugment"], height: int, width: int, device: torch.device
) -> Tensor:
    """Return the magnitudes of every operation.

    Shears are tangents, shifts are in pixels, angles in degrees, enhancements as ``adjust`` takes
    them, posterizing keeps that many bits, and solarizing inverts from this share of white on.

    Args:
        policy: The policy.
        height: Of the images, in pixels; RandAugment shifts by shares of it.
        width: As ``height``.
        device: Of the images.

    Returns:
        Shape (14, 2, 31): operation, sign (positive first) and bin.
    """
    is_wide = policy == "trivialaugment"
    enhancement = 0.99 if is_wide else 0.9
    most = {
        Operation.SHEAR_X: 0.99 if is_wide else 0.3,
        Operation.SHEAR_Y: 0.99 if is_wide else 0.3,
        Operation.TRANSLATE_X: 32.0 if is_wide else 150 / 331 * width,
        Operation.TRANSLATE_Y: 32.0 if is_wide else 150 / 331 * height,
        Operation.ROTATE: 135.0 if is_wide else 30.0,
        Operation.BRIGHTNESS: enhancement,
        Operation.COLOR: enhancement,
        Operation.CONTRAST: enhancement,
        Operation.SHARPNESS: enhancement,
    }
    table = torch.zeros(len(Operation), 2, NUM_BINS)
    for operation in SIGNED:
        table[operation, 0] = torch.linspace(0, most[Operation(operation)], NUM_BINS)
        table[operation, 1] = -table[operation, 0]
    lost_bits = torch.arange(NUM_BINS) / ((NUM_BINS - 1) / (6 if is_wide else 4))
    table[Operation.POSTERIZE] = (8 - lost_bits).round()
    table[Operation.SOLARIZE] = torch.linspace(1, 0, NUM_BINS)
    return table.to(device)
