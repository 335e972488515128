"""Images with which a loaded ensemble checks itself: ``probe.safetensors`` in its folder."""

import json
from dataclasses import dataclass

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tuner.storage.files import replacing
from tuner.storage.paths import AnyPath, on_disk

NUM_IMAGES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Validation images, and each member's predictions for them when the ensemble was made."""

    images: Tensor
    """Prepared images, uint8, shape (N, C, H, W)."""
    probs: Tensor
    """Raw softmax outputs of each network, float32, shape (M, N, K)."""
    device: str
    """Type of the device that computed them: ``cpu`` or ``cuda``."""
    dtypes: tuple[str, ...]
    """Data type of each member's computation, such as ``torch.float32``."""


def choose_images(images: Tensor) -> Tensor:
    """Return up to ``NUM_IMAGES`` images, evenly spread over all of them."""
    count = min(NUM_IMAGES, len(images))
    return images[torch.arange(count) * len(images) // count].contiguous()


def write_probe(path: AnyPath, probe: Probe) -> None:
    """Write a probe, whole or not at all."""
    metadata = {"device": probe.device, "dtypes": json.dumps(probe.dtypes)}
    tensors = {"images": probe.images.contiguous(), "probs": probe.probs.contiguous()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)


def read_probe(path: AnyPath) -> Probe:
    """Read a probe written by ``write_probe``.

    Raises:
        OSError: If it is missing, or no plain file.
        ValueError: If it is something else.
    """
    try:
        with on_disk(path) as local, safe_open(local, framework="pt") as file:
            metadata = file.metadata() or {}
            probe = Probe(
                images=file.get_tensor("images"),
                probs=file.get_tensor("probs"),
                device=metadata["device"],
                dtypes=tuple(json.loads(metadata["dtypes"])),
            )
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"is not a probe ({error})") from error
    images, probs = probe.images, probe.probs
    is_whole = images.dtype == torch.uint8 and (images.ndim, probs.ndim) == (4, 3)
    if not is_whole or not images.numel() or probs.shape[:2] != (len(probe.dtypes), len(images)):
        raise ValueError(f"is not a probe (shapes {tuple(images.shape)} and {tuple(probs.shape)})")
    return probe


def total_variation(probs: Tensor, expected: Tensor) -> Tensor:
    """Return the total variation distance of two predictions, in [0, 1], shape (N,).

    It is half of the sum of absolute differences over the classes; unlike their mean, it does not
    shrink with the number of classes.

    Args:
        probs: Shape (N, K).
        expected: Shape (N, K).
    """
    return (probs - expected).abs().sum(dim=1) / 2
