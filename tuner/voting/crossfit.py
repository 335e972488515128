"""Honest validation of a choice that was itself made on the validation images."""

from collections.abc import Callable

import torch
from torch import Tensor

FOLDS = 5


def cross_fit(choose: Callable[[Tensor], Tensor], num_images: int, *, folds: int = FOLDS) -> Tensor:
    """Predict each image with the choice that was made without it.

    The best of many figures is partly luck, and so is a weight fitted to the images it is scored
    on. So the whole choice is repeated for each fold, on the other folds.

    Args:
        choose: Takes the positions of the images to choose on, int64, and returns the
            probabilities of all images by that choice, shape (N, K).
        num_images: N, at least 2.
        folds: Number of parts.

    Returns:
        Probabilities, float64, shape (N, K).

    Raises:
        ValueError: If there are not two images to divide.
    """
    if num_images < 2:
        raise ValueError(f"cross-fitting needs 2 images, got {num_images}")
    parts = parts_of(num_images, folds=folds)
    everyone = torch.arange(num_images)
    held_out = [choose(everyone[~torch.isin(everyone, part)])[part] for part in parts]
    return torch.cat(held_out).double()[torch.cat(parts).argsort()]


def parts_of(num_images: int, *, folds: int = FOLDS) -> tuple[Tensor, ...]:
    """Divide the image positions into random parts, the same ones every time."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(0))
    return order.tensor_split(min(folds, num_images))
