"""Networks on disk, and what they say of images: side by side on the devices at hand."""

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tuner.config import ModelConfig, Precision
from tuner.metrics.predict import Tta, predict_probs
from tuner.run.checkpoint import load_checkpoint
from tuner.storage.paths import AnyPath
from tuner.training.device import compute_dtype
from tuner.voting import floored


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A checkpoint, and how it is computed."""

    file: AnyPath
    model: ModelConfig
    """What the file has to hold."""
    precision: Precision
    floor: float = 0.0
    """Probabilities are raised to it, as those of the validation images were by being stored."""


class Predict(Protocol):
    """Where networks are computed: ``Local`` here, or elsewhere on a cluster."""

    def __call__(self, networks: Sequence[Network], images: Tensor, tta: Tta) -> Tensor:
        """Return the class probabilities, shape (M, N, K), of images uint8 (N, C, H, W)."""


@dataclass(frozen=True, slots=True)
class Local:
    """Computes on the devices of this machine, a network at a time on each."""

    devices: Sequence[torch.device]

    def __call__(self, networks: Sequence[Network], images: Tensor, tta: Tta) -> Tensor:
        """Return the class probabilities, float32 on the CPU, shape (M, N, K)."""
        free: queue.SimpleQueue[torch.device] = queue.SimpleQueue()
        for device in self.devices:
            free.put(device)

        def predict(network: Network) -> Tensor:
            device = free.get()
            try:
                return predict_network(network, images, tta, device)
            finally:
                free.put(device)

        with ThreadPoolExecutor(len(self.devices)) as workers:
            return torch.stack(list(workers.map(predict, networks)))


def predict_network(network: Network, images: Tensor, tta: Tta, device: torch.device) -> Tensor:
    """Return a network's class probabilities, shape (N, K), as its validation was computed.

    Raises:
        TunerError: If the file is missing or damaged.
    """
    model, checkpoint = load_checkpoint(network.file, network.model)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (checkpoint.mean, checkpoint.std))
    dtype = compute_dtype(network.precision, device)
    probs = predict_probs(model.to(device), images, mean, std, device=device, dtype=dtype, tta=tta)
    return floored(probs, network.floor)
