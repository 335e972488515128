"""Networks on disk and their predictions, computed in parallel on the available devices."""

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from tuner.augment import per_channel
from tuner.config import ModelConfig, Precision, Tta
from tuner.data.splits import Splits
from tuner.metrics.predict import predict_probs
from tuner.models.folded import FoldedNetwork
from tuner.run.checkpoint import load_checkpoint
from tuner.storage.paths import AnyPath
from tuner.training.device import compute_dtype
from tuner.voting import floored


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A checkpoint, and how to compute it."""

    file: AnyPath
    model: ModelConfig
    """The model that the file must hold."""
    precision: Precision
    floor: float = 0.0
    """Probabilities are raised to this, as storing did to those of the validation images."""
    fold: int | None = None
    """Which of a trial's fold networks in the file to use; ``None`` averages all of them."""


class Predict(Protocol):
    """Where networks are computed: ``Local`` here, or elsewhere on a cluster."""

    def __call__(self, networks: Sequence[Network], images: Tensor, tta: Tta) -> Tensor:
        """Return the class probabilities, shape (M, N, K), of images uint8 (N, C, H, W)."""


@dataclass(frozen=True, slots=True)
class Local:
    """Computes on the devices of this machine, one network at a time on each."""

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


def predict_validation(
    predict: Predict, networks: Sequence[Network], splits: Splits, tta: Tta
) -> Tensor:
    """Return the class probabilities of the validation images, shape (M, N, K).

    With folds, each image is predicted only by the networks that were not trained on it.
    """
    if splits.fold_of is None:
        return predict(networks, splits.val.images, tta)
    probs = torch.empty(len(networks), len(splits.val), splits.num_classes)
    for fold in range(splits.num_folds):
        held_out = splits.fold_of == fold
        of_fold = [replace(network, fold=fold) for network in networks]
        probs[:, held_out] = predict(of_fold, splits.val.images[held_out], tta)
    return probs


def predict_network(network: Network, images: Tensor, tta: Tta, device: torch.device) -> Tensor:
    """Return a network's class probabilities, shape (N, K), computed as in its validation.

    Raises:
        TunerError: If the file is missing or damaged.
    """
    model, checkpoint = load_checkpoint(network.file, network.model)
    if network.fold is not None:
        assert isinstance(model, FoldedNetwork)
        model = model.networks[network.fold]
    mean, std = per_channel(checkpoint.mean), per_channel(checkpoint.std)
    dtype = compute_dtype(network.precision, device)
    probs = predict_probs(model.to(device), images, mean, std, device=device, dtype=dtype, tta=tta)
    return floored(probs, network.floor)
