"""How long a network takes to predict."""

import torch
from torch import nn

from tuner.augment import per_channel
from tuner.config import Tta
from tuner.metrics.predict import predict_probs

MIN_SECONDS = 0.2
"""Minimum time per measurement, in seconds."""


def predict_ms(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    tta: Tta = "none",
) -> float:
    """Return the median time of a batch, from uint8 images in memory to their probabilities.

    Args:
        model: On ``device``.
        image_shape: (C, H, W).
        batch: Images per batch.
        device: Where to compute.
        dtype: See ``predict_probs``.
        mean: Channel means of values scaled to [0, 1].
        std: As ``mean``.
        tta: Views of an image that are averaged.

    Returns:
        Milliseconds for the whole batch.
    """
    # Imports PyTorch's extension compiler: half a second that only this function should wait for.
    from torch.utils.benchmark import Timer

    timer = Timer(
        "predict(model, images, mean, std, **settings)",
        globals={
            "predict": predict_probs,
            "model": model,
            "images": torch.zeros(batch, *image_shape, dtype=torch.uint8),
            "mean": per_channel(mean),
            "std": per_channel(std),
            "settings": {"device": device, "dtype": dtype, "tta": tta, "batch_size": batch},
        },
        num_threads=torch.get_num_threads(),
    )
    return 1000 * timer.blocked_autorange(min_run_time=MIN_SECONDS).median
