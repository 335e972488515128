"""What trials are trained on, as arrays that travel to each node only once."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tuner.config import ModelConfig
from tuner.data.cache import Images
from tuner.data.splits import Splits
from tuner.training.initial_weights import InitialWeights, start_key

_FINGERPRINTS = ("fingerprint", "split_fingerprint", "teacher_fingerprint")
_REST = ("classes", "mean", "std", "fold_of", "is_val_seen", *_FINGERPRINTS)
_resident: dict[str, Splits] = {}
"""The one data set that this process keeps on its GPU, by fingerprint."""


def pack(splits: Splits) -> dict[str, Any]:
    """Convert splits to NumPy arrays, which every worker of a node maps without a copy."""
    parts = {"train": splits.train} | ({} if splits.num_folds else {"val": splits.val})
    teacher = {} if splits.teacher is None else {"teacher": splits.teacher.numpy()}
    return {
        part: {"images": images.images.numpy(), "labels": images.labels.numpy()}
        for part, images in parts.items()
    } | {"teacher": teacher, "rest": {name: getattr(splits, name) for name in _REST}}


def unpack(data: dict[str, Any], device: torch.device) -> Splits:
    """Undo ``pack``, with the images on ``device``, moved there once per process."""
    train_images = Images(**_as_tensors(data["train"]))
    # With folds, all images serve as both.
    val_images = Images(**_as_tensors(data["val"])) if "val" in data else train_images
    teacher = _as_tensors(data["teacher"]).get("teacher")
    splits = Splits(train=train_images, val=val_images, teacher=teacher, **data["rest"])
    if device.type == "cpu":
        return splits
    key = "".join(getattr(splits, name) for name in _FINGERPRINTS)
    if key not in _resident:
        _resident.clear()
        train_there = train_images.to(device)
        is_both = val_images is train_images
        _resident[key] = replace(
            splits, train=train_there, val=train_there if is_both else val_images.to(device)
        )
    return _resident[key]


def pack_initial_weights(initial_weights: Mapping[str, InitialWeights]) -> dict[str, Any]:
    """Convert initial weights to NumPy arrays, keyed by ``start_key``; see ``pack``."""
    return {
        key: {
            "tensors": {name: tensor.numpy() for name, tensor in start.tensors.items()},
            "mean": start.mean,
            "std": start.std,
        }
        for key, start in initial_weights.items()
    }


def unpack_initial_weights(
    initial_weights: dict[str, Any], model: ModelConfig
) -> InitialWeights | None:
    """Undo ``pack_initial_weights`` for what ``model`` starts from; ``None`` for random weights."""
    packed = initial_weights.get(start_key(model) or "")
    return packed and InitialWeights(**packed | {"tensors": _as_tensors(packed["tensors"])})


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array in shared memory as a tensor, without a copy."""
    with warnings.catch_warnings():
        # The array is read-only; nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _as_tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: as_tensor(array) for name, array in arrays.items()}
