"""Whether a trial's probabilities and network match its recorded epochs."""

import numpy as np
import torch
from torch import Tensor, nn

from tuner.augment import per_channel
from tuner.data.splits import Splits
from tuner.errors import StorageError, TunerError
from tuner.metrics.predict import predict_probs
from tuner.models.folded import FoldedNetwork
from tuner.run.checkpoint import load_checkpoint
from tuner.run.trial import EpochMetrics, TrialRecord
from tuner.storage.paths import AnyPath
from tuner.training.device import compute_dtype, describe
from tuner.voting import SMALLEST_PROB, floored

SAMPLE = 64
"""Maximum number of validation images to check a network on."""
SAME, OTHER = 0.001, 0.02
"""Maximum difference of a network's probabilities from the recorded ones: on the same kind of
device and in the same type, and otherwise."""
MOST_CLASSES = 10
"""Maximum divisor of the difference: of a hundred classes, most are close to 0 anyway."""
DTYPES = (torch.float32, torch.bfloat16)
"""Types in which networks may be computed."""
ROUNDING = {np.dtype(np.float32): (2.0**-23, 1e-4), np.dtype(np.float16): (2.0**-11, 2e-3)}
"""Type of stored probabilities -> relative error of one, and tolerance of a row's sum."""


def why_not_probs(
    stored: np.ndarray, best: EpochMetrics, labels: Tensor, num_classes: int
) -> str | None:
    """Return why stored probabilities of the validation images are not those of an epoch.

    Args:
        stored: The probabilities as read.
        best: The epoch, with its accuracy and loss.
        labels: Labels of the images, int64, shape (N,).
        num_classes: K.

    Returns:
        The problem; ``None`` if there is none.
    """
    shape = (len(labels), num_classes)
    if stored.shape != shape:
        return f"has shape {stored.shape}, not {shape}"
    if stored.dtype not in ROUNDING:
        return f"holds {stored.dtype}, not float32"
    relative, most_off = ROUNDING[stored.dtype]
    if not np.isfinite(stored).all():
        return "holds numbers that are not finite"
    if stored.min() < 0 or stored.max() > 1 + 1e-6:
        return f"holds numbers from {stored.min():g} to {stored.max():g}, not in [0, 1]"
    sums = stored.sum(axis=1, dtype=np.float64)
    off = np.abs(sums - 1)
    if off.max() > most_off:
        return f"row {off.argmax()} sums to {sums[off.argmax()]:g}, not to 1"
    truth = labels.numpy()[:, None]
    of_truth = np.take_along_axis(stored, truth, axis=1).astype(np.float64)
    others = stored.copy()
    np.put_along_axis(others, truth, -1.0, axis=1)
    rival = others.max(axis=1, keepdims=True)
    # Where two classes tie for the best, the true one may have been ahead before rounding.
    least, most = ((of_truth > rival).mean(), (of_truth >= rival).mean())
    half = 0.5 / len(labels)
    if not least - half < best.val_accuracy < most + half:
        return (
            f"gives an accuracy of {least:.4f}, and history.csv records {best.val_accuracy:.4f} "
            f"in epoch {best.epoch}"
        )
    error = of_truth * relative + (2.0**-25 if stored.dtype == np.float16 else 0.0)
    low, high = (
        -np.log(np.clip(of_truth + sign * error, SMALLEST_PROB, 1)).mean() for sign in (1, -1)
    )
    if not low - 1e-5 <= best.val_loss <= high + 1e-5:
        return (
            f"gives a loss of {(low + high) / 2:.5f}, and history.csv records {best.val_loss:.5f} "
            f"in epoch {best.epoch}"
        )
    return None


def sample_of(count: int) -> Tensor:
    """Return the positions of the images to check a network on, spread over all."""
    few = min(count, SAMPLE)
    return torch.arange(few) * count // few


def difference_of(probs: Tensor, recorded: Tensor) -> float:
    """Return the mean difference per class of probabilities (N, K); see ``MOST_CLASSES``."""
    apart = (probs.double() - recorded.double()).abs().sum(dim=1).mean()
    return apart.item() / min(MOST_CLASSES, probs.shape[1])


def why_not_network(
    file: AnyPath,
    trial: TrialRecord,
    splits: Splits,
    recorded: Tensor,
    floor: float,
    device: torch.device,
    *,
    is_recorded: bool = False,
) -> str | None:
    """Return why the network in a file is not the one whose probabilities a trial recorded.

    Its own code, if any, is run.

    Args:
        file: The trial's checkpoint, or a copy of it.
        trial: The trial that it must belong to.
        splits: The images.
        recorded: Probabilities of the images that ``sample_of`` selects, shape (n, K).
        floor: Floor of these; see ``Network``.
        device: Where to compute.
        is_recorded: Whether the file is the one that the worker recorded, by its hash: another GPU
            or a compiled network may then differ by more.

    Returns:
        The problem; ``None`` if there is none.

    Raises:
        StorageError: If the file cannot be read because of an outage.
    """
    try:
        network, described = load_checkpoint(file, trial.config.model)
    except StorageError:
        raise
    except TunerError as error:
        return str(error).removeprefix(f"{file}: ")
    if described.classes != splits.classes or described.image_shape != splits.image_shape:
        return "is a network of other images"
    if trial.best is None or described.epoch != trial.best.epoch:
        told = trial.best.epoch if trial.best else None
        return f"holds epoch {described.epoch}, and history.csv has the best in epoch {told}"
    mean, std = per_channel(described.mean), per_channel(described.std)
    if described.folds != splits.num_folds:
        return f"holds networks of {described.folds} folds, not of {splits.num_folds}"
    positions = sample_of(len(splits.val))
    images = splits.val.images[positions]
    network = network.to(device)

    def predict(of: nn.Module, seen: Tensor, dtype: torch.dtype) -> Tensor:
        return predict_probs(of, seen, mean, std, device=device, dtype=dtype)

    def difference_in(dtype: torch.dtype) -> float:
        if isinstance(network, FoldedNetwork) and splits.fold_of is not None:
            # Each image by the network that was not trained on it, as in validation.
            probs = torch.empty(len(images), splits.num_classes)
            folds = splits.fold_of[positions]
            for fold in set(folds.tolist()):
                held_out = folds == fold
                probs[held_out] = predict(network.networks[fold], images[held_out], dtype)
        else:
            probs = predict(network, images, dtype)
        return difference_of(floored(probs, floor), recorded)

    dtypes = [dtype for dtype in DTYPES if describe(device, dtype) == described.computed]
    is_same = bool(dtypes)
    if not described.computed:
        # An earlier version did not record the type, and a CPU may have used either.
        is_same = device.type == "cpu" and not trial.gpus
        dtypes = [*DTYPES] if is_same else []
    difference = min(
        difference_in(dtype) for dtype in dtypes or [compute_dtype(trial.config.precision, device)]
    )
    most = SAME if is_same and not is_recorded else OTHER
    if not difference <= most:
        return (
            f"gives other probabilities than val_probs.npy holds: they differ by {difference:.2g} "
            f"in the mean, at most {most} is rounding"
        )
    return None
