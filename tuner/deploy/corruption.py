"""Some corruptions of CIFAR-10-C, made on the fly: noise, blur, light, contrast and compression.

Hendrycks & Dietterich (2019), "Benchmarking neural network robustness to common corruptions and
perturbations". Strengths and arithmetic follow their program for images of 32 pixels,
``make_cifar_c.py``. Their other kinds are left out because they need pictures of frost, or
libraries that this program does not use otherwise.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tuner.data.decoding import image_of

Kind = Literal[
    "gaussian_noise",
    "shot_noise",
    "defocus_blur",
    "gaussian_blur",
    "brightness",
    "contrast",
    "jpeg_compression",
    "pixelate",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
SEVERITIES = (1, 2, 3, 4, 5)

_STRENGTHS: dict[Kind, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
}
_DISKS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
"""Radius and smoothed edge width of the defocus disk."""


@dataclass(frozen=True, slots=True)
class Corruption:
    """One kind at one severity, with its own random numbers.

    Images come in order, in batches of any size: the same images get the same noise.
    """

    kind: Kind
    severity: int
    """1 to 5."""
    generator: np.random.Generator

    def __call__(self, images: Tensor) -> Tensor:
        """Return corrupted images, uint8, of the same shape (N, C, H, W)."""
        if self.kind == "defocus_blur":
            return _as_bytes(_defocused(_as_shares(images), *_DISKS[self.severity - 1]))
        return _MAKERS[self.kind](images, _STRENGTHS[self.kind][self.severity - 1], self.generator)


def all_corruptions(seed: int = 0) -> Iterator[Corruption]:
    """Yield every kind at every severity, the mildest first."""
    for number, kind in enumerate(KINDS):
        for severity in SEVERITIES:
            generator = np.random.default_rng((seed, number, severity))
            yield Corruption(kind, severity, generator)


def _gaussian_noise(images: Tensor, scale: float, generator: np.random.Generator) -> Tensor:
    shares = _as_shares(images)
    return _as_bytes(shares + generator.normal(scale=scale, size=shares.shape))


def _shot_noise(images: Tensor, photons: float, generator: np.random.Generator) -> Tensor:
    return _as_bytes(generator.poisson(_as_shares(images) * photons) / photons)


def _gaussian_blur(images: Tensor, sigma: float, generator: np.random.Generator) -> Tensor:
    from scipy.ndimage import gaussian_filter

    # Repeat the edges, like skimage.filters.gaussian.
    widths = (0, 0, sigma, sigma)
    return _as_bytes(gaussian_filter(_as_shares(images), widths, mode="nearest", truncate=4))


def _defocused(shares: np.ndarray, radius: float, edge: float) -> np.ndarray:
    from scipy.ndimage import convolve

    side = np.arange(-8, 9)
    disk = (side[:, None] ** 2 + side**2 <= radius**2).astype(float)
    steps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * edge**2))
    smooth = np.outer(steps, steps) / steps.sum() ** 2
    kernel = convolve(disk / disk.sum(), smooth, mode="mirror")
    # The kernel is 0 beyond the middle.
    blurred: np.ndarray = convolve(shares, kernel[None, None, 5:12, 5:12], mode="mirror")
    return blurred


def _brightness(images: Tensor, more: float, generator: np.random.Generator) -> Tensor:
    shares = _as_shares(images)
    # The value of HSV is the largest channel; scaling all channels keeps hue and saturation.
    value = shares.max(axis=1, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    return _as_bytes(np.where(value > 0, shares / np.where(value > 0, value, 1), 1) * brighter)


def _contrast(images: Tensor, share: float, generator: np.random.Generator) -> Tensor:
    shares = _as_shares(images)
    means = shares.mean(axis=(2, 3), keepdims=True)
    return _as_bytes((shares - means) * share + means)


def _jpeg_compression(images: Tensor, quality: float, generator: np.random.Generator) -> Tensor:
    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _each(images, compressed)


def _pixelate(images: Tensor, share: float, generator: np.random.Generator) -> Tensor:
    def pixelated(image: Image.Image) -> Image.Image:
        width, height = image.size
        small = image.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        return small.resize((width, height), Image.Resampling.BOX)

    return _each(images, pixelated)


_MAKERS: dict[Kind, Callable[[Tensor, float, np.random.Generator], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "gaussian_blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg_compression": _jpeg_compression,
    "pixelate": _pixelate,
}


def _each(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Change images one by one as Pillow images."""
    changed = torch.empty_like(images)
    for target, image in zip(changed, images, strict=True):
        pixels = image.permute(1, 2, 0).numpy()
        done = np.array(change(image_of(pixels))).reshape(pixels.shape)
        target[:] = torch.from_numpy(done).permute(2, 0, 1)
    return changed


def _as_shares(images: Tensor) -> np.ndarray:
    return images.numpy() / 255


def _as_bytes(shares: np.ndarray) -> Tensor:
    # Truncate, as their program does.
    return torch.from_numpy((np.clip(shares, 0, 1) * 255).astype(np.uint8))
