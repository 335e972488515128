"""Change the values of pixels: normalization, colour jitter, and tables of grey levels.

Levels are integers from 0 to 255, stored here as floats, and every step rounds down to integers, as
torchvision does on uint8. There is one magnitude per image, and 0 leaves an image unchanged.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

NUM_LEVELS = 256
LUMA = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in an image's grey version (ITU-R BT.601)."""


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return uint8 images as float32 with about zero mean and unit variance per channel.

    Args:
        images: uint8, shape (N, C, H, W); one channel is repeated, if ``mean`` has more.
        mean: Per channel, of values scaled to [0, 1], shape (1, C, 1, 1).
        std: As ``mean``.
    """
    values = images.float()
    if values.shape[1] != mean.shape[1]:
        values = values.repeat(1, mean.shape[1], 1, 1)
    # In place: 0.9 us per image of 3x32x32 on a CPU core; a broadcast into new memory takes 6.4.
    return values.sub_(255 * mean).mul_(1 / (255 * std))


def per_channel(values: Sequence[float], device: torch.device | None = None) -> Tensor:
    """Return values per channel in the shape that ``normalize`` takes, (1, C, 1, 1)."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def colour_jitter(
    images: Tensor,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    generator: Generator,
) -> Tensor:
    """Change each image's colours by random factors, in a random order for each image.

    The first three factors are uniform in [1 - x, 1 + x], not below 0; see torchvision's
    ``ColorJitter``.

    Args:
        images: uint8, shape (N, C, H, W); the last two do nothing unless C is 3.
        brightness: x for the factor of all values; 0 turns it off, as for the others.
        contrast: x for the distance of each value from the image's mean grey.
        saturation: x for the distance of each pixel from its own grey.
        hue: The most that hues are turned in either direction, in full turns; up to 0.5.
        generator: On the images' device.
    """
    limits = {
        "brightness": (-min(brightness, 1.0), brightness),
        "contrast": (-min(contrast, 1.0), contrast),
        "saturation": (-min(saturation, 1.0), saturation),
        "hue": (-hue, hue),
    }
    used = {name: limit for name, limit in limits.items() if limit[1] > 0}
    if not used:
        return images
    # A sorted row of random numbers is a random order; each number is a step's place in it.
    size, device = (len(used), len(images)), images.device
    draws = torch.rand(size, generator=generator, device=device)
    places = torch.rand(size, generator=generator, device=device).argsort(dim=0)
    levels = images.float()
    for turn in range(len(used)):
        magnitudes = {
            name: torch.where(place == turn, low + (high - low) * draw, 0.0)
            for (name, (low, high)), place, draw in zip(used.items(), places, draws, strict=True)
        }
        turns = magnitudes.pop("hue", None)
        if magnitudes:
            levels = adjust(levels, **magnitudes)
        if turns is not None:
            rows = rows_of(turns != 0)
            levels[rows] = turn_hue(levels[rows], turns[rows])
    return levels.to(images.dtype)


def rows_of(chosen: Tensor) -> Tensor | slice:
    """Return an index of the images where ``chosen`` is true or, on a GPU, of all.

    With a GPU, counting them means waiting for it, and it computes all in the same time.

    Args:
        chosen: bool, shape (N,).
    """
    return chosen.nonzero().flatten() if chosen.device.type == "cpu" else slice(None)


def adjust(
    images: Tensor,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
) -> Tensor:
    """Move each image away from a plainer version of itself, or towards it, by its magnitude.

    The plainer version is black for brightness, all of the mean grey for contrast and the grey
    image for saturation (PIL's ``ImageEnhance``); a magnitude of -1 gives it.

    Args:
        images: Levels, shape (N, C, H, W).
        brightness: Magnitudes from -1, shape (N,); at most one of the three is not 0 for an image.
        contrast: As ``brightness``.
        saturation: As ``brightness``; does nothing unless C is 3.
    """
    magnitude = torch.zeros(len(images), 1, 1, 1, device=images.device)
    plain = torch.zeros(1, device=images.device)
    if images.shape[1] != len(LUMA):
        saturation = None
    if brightness is not None:
        magnitude = magnitude + _per_image(brightness)
    if contrast is not None or saturation is not None:
        grey = to_grey(images)
        if contrast is not None:
            mean = grey.mean(dim=(1, 2, 3), keepdim=True)
            plain = torch.where(_per_image(contrast) != 0, mean, plain)
            magnitude = magnitude + _per_image(contrast)
        if saturation is not None:
            plain = torch.where(_per_image(saturation) != 0, grey, plain)
            magnitude = magnitude + _per_image(saturation)
    moved = (images * (1 + magnitude)).sub_(plain * magnitude)
    return moved.clamp_(0, NUM_LEVELS - 1).floor_()


def sharpen(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Move each image away from a blurred version of itself, or towards it; the border stays.

    The blur weighs a pixel by 5 and its eight neighbours by 1.

    Args:
        images: Levels, shape (N, C, H, W).
        magnitudes: From -1, which gives the blurred version, shape (N,).
    """
    # Sums of shifted views are whole numbers, and 12 times as fast as a grouped convolution.
    three_rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    nine = three_rows[..., :-2] + three_rows[..., 1:-1] + three_rows[..., 2:]
    inner = images[:, :, 1:-1, 1:-1]
    blurred = nine.add_(inner, alpha=4).div_(13).round_()
    moved = (inner - blurred).mul_(_per_image(magnitudes)).add_(inner)
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = moved.clamp_(0, NUM_LEVELS - 1).floor_()
    return result


def to_grey(images: Tensor) -> Tensor:
    """Return the grey version of images, shape (N, 1, H, W); unless RGB, the channels' mean."""
    if images.shape[1] != len(LUMA):
        return images.mean(dim=1, keepdim=True).floor_()
    red, green, blue = (images[:, channel, None] for channel in range(3))
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).floor_()


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hues of RGB images around the colour circle; others stay unchanged.

    Args:
        images: Levels, shape (N, C, H, W).
        turns: In full turns, in [-0.5, 0.5], shape (N,).
    """
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(dim=1)
    value, chroma = images.amax(dim=1), images.amax(dim=1) - images.amin(dim=1)
    some = chroma.clamp(min=1)
    # In sixths of a turn from red, by the sector of the strongest channel.
    hue = torch.where(
        value == red,
        (green - blue) / some,
        torch.where(value == green, 2 + (blue - red) / some, 4 + (red - green) / some),
    )
    hue += 6 * turns[:, None, None]
    # A channel is full within a sixth of its own hue on both sides, and empty from two sixths on.
    channels = []
    for offset in (5, 3, 1):
        angle = (hue + offset).remainder_(6)
        lack = torch.minimum(angle, 4 - angle).clamp_(0, 1)
        channels.append(torch.addcmul(value, lack, chroma, value=-1))
    # As torchvision converts [0, 1] back to bytes.
    return torch.stack(channels, dim=1).mul_((NUM_LEVELS - 0.001) / 255).floor_()


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each value by its entry in its channel's table.

    Args:
        images: uint8, shape (N, C, H, W).
        tables: The new level of each level, any dtype, shape (N, C, 256).
    """
    new = tables.to(images.dtype).gather(2, images.flatten(2).long())
    return new.view(images.shape)


def stretching_tables(images: Tensor) -> Tensor:
    """Return tables that spread each channel over all levels, from black to white.

    Args:
        images: uint8, shape (N, C, H, W).

    Returns:
        New levels for ``look_up``, float32, shape (N, C, 256); a channel of one level keeps it.
    """
    levels = torch.arange(NUM_LEVELS, dtype=torch.float32, device=images.device)
    pixels = images.flatten(2)
    low, high = (bound.float()[..., None] for bound in (pixels.amin(2), pixels.amax(2)))
    is_flat = low == high
    scale = torch.where(is_flat, 1.0, (high - low) * (1 / 255))
    spread = (levels - torch.where(is_flat, 0.0, low)) / scale
    return spread.clamp_(0, NUM_LEVELS - 1).floor_()


def equalizing_tables(images: Tensor) -> Tensor:
    """Return tables under which each channel has all levels about equally often, as PIL makes them.

    Args:
        images: uint8, shape (N, C, H, W).

    Returns:
        New levels for ``look_up``, int64, shape (N, C, 256).
    """
    pixels = images.flatten(2).long()
    counts = pixels.new_zeros((*pixels.shape[:2], NUM_LEVELS))
    counts.scatter_add_(2, pixels, pixels.new_ones(1).expand_as(pixels))
    at_top = counts.gather(2, pixels.amax(dim=2, keepdim=True))
    step = (pixels.shape[2] - at_top).div_(NUM_LEVELS - 1, rounding_mode="floor")
    below = counts.cumsum(dim=2) - counts
    even = (below + step // 2).div_(step.clamp(min=1), rounding_mode="floor")
    levels = torch.arange(NUM_LEVELS, device=images.device)
    return torch.where(step == 0, levels, even.clamp_(max=NUM_LEVELS - 1))


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
