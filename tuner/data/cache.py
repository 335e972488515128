"""Decoded images that are kept, as safetensors, and mapped from there the next time."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tuner.data.decoding import Met
from tuner.errors import DataError
from tuner.storage.files import replacing

DECODER = 3
"""To be raised when the same files decode to other images, for caches to be made anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Images with their labels."""

    images: Tensor
    """uint8, shape (N, C, H, W), contiguous."""
    labels: Tensor
    """int64, shape (N,)."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """The decoded images of one part of a data set, and what was met on the way."""

    images: Images
    classes: tuple[str, ...]
    fingerprint: str
    """SHA-256 of images, labels and classes."""
    met: Met = field(default_factory=Met)
    """Empty where no files were decoded."""


class Fingerprint:
    """SHA-256 of images, which may come in batches and in any order, their labels and classes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._waiting: dict[int, Tensor | None] = {}
        self._next = 0
        self._shape = [0]

    def add(self, images: Tensor) -> None:
        """Take the next images, uint8, shape (N, C, H, W)."""
        self._shape = [self._shape[0] + len(images), *images.shape[1:]]
        self._digest.update(images.contiguous().numpy().data)

    def place(self, position: int, image: Tensor | None) -> None:
        """Take one image out of its turn; what comes early waits.

        Args:
            position: Its turn, from 0; none may be left out.
            image: uint8, shape (C, H, W); ``None`` for one that is no part of it after all.
        """
        self._waiting[position] = image
        while self._next in self._waiting:
            first = self._waiting.pop(self._next)
            self._next += 1
            if first is not None:
                self.add(first[None])

    def of(self, labels: Tensor, classes: Sequence[str]) -> str:
        """Return the fingerprint in hexadecimal.

        Args:
            labels: int64, shape (N,), one an image.
            classes: Names of all classes, in the order of the labels.
        """
        self._digest.update(labels.numpy().data)
        self._digest.update(json.dumps([*self._shape, *classes]).encode())
        return self._digest.hexdigest()


def fingerprint_of(images: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    """Return the fingerprint of images with their labels."""
    fingerprint = Fingerprint()
    fingerprint.add(images)
    return fingerprint.of(labels, classes)


def make_decoded(
    images: Tensor, labels: Tensor, classes: Sequence[str], met: Met | None = None
) -> Decoded:
    """Put images together with their fingerprint."""
    return Decoded(
        images=Images(images=images, labels=labels),
        classes=tuple(classes),
        fingerprint=fingerprint_of(images, labels, classes),
        met=met or Met(),
    )


def cached(
    folders: Sequence[Path], name: str, *, key: str, decode: Callable[[], Decoded]
) -> Decoded:
    """Return what ``decode`` gave when ``key`` was the same, from the first of ``folders`` with it.

    Raises:
        DataError: If none of ``folders`` can be written.
    """
    if (known := find_cached(folders, name, key=key)) is not None:
        return known
    decoded = decode()
    keep(folders, name, key=key, decoded=decoded)
    return decoded


def find_cached(folders: Sequence[Path], name: str, *, key: str) -> Decoded | None:
    """Return the first copy of the name and key in ``folders`` that is whole, or ``None``."""
    found = (_read(folder / name, _versioned(key)) for folder in folders)
    return next((known for known in found if known is not None), None)


def keep(folders: Sequence[Path], name: str, *, key: str, decoded: Decoded) -> None:
    """Write decoded images into the first of ``folders`` that takes them.

    Raises:
        DataError: If none can be written.
    """
    refusals = []
    for folder in folders:
        try:
            _write(folder / name, _versioned(key), decoded)
        except (OSError, SafetensorError) as error:
            refusals.append(f"{folder}: {error}")
        else:
            return
    raise DataError(
        f"decoded images cannot be kept ({'; '.join(refusals)}). Give a --data-dir with room that "
        "can be written."
    )


def sha256(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of all parts one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _versioned(key: str) -> str:
    return f"{DECODER}:{key}"


def _read(path: Path, key: str) -> Decoded | None:
    """Map the images of the cache at ``path``; ``None`` where it is absent, damaged or stale."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
            classes = tuple(json.loads(metadata["classes"]))
            met = _met(json.loads(metadata["met"]))
            is_whole = fingerprint_of(images, labels, classes) == metadata["fingerprint"]
            if not is_whole or not _fits(images, labels, len(classes)):
                return None
    # What is damaged or was meddled with is decoded anew, whatever is the matter with it.
    except (
        *(OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError),
        RecursionError,
    ):
        return None
    return Decoded(
        images=Images(images=images, labels=labels),
        classes=classes,
        fingerprint=metadata["fingerprint"],
        met=met,
    )


def _fits(images: Tensor, labels: Tensor, num_classes: int) -> bool:
    """Whether these are images with a label each, of the kinds that are kept."""
    if (images.dtype, images.ndim, labels.dtype) != (torch.uint8, 4, torch.int64):
        return False
    if len(labels) == 0 or labels.shape != images.shape[:1]:
        return False
    return int(labels.min()) >= 0 and int(labels.max()) < num_classes


def _met(plain: dict[str, Any]) -> Met:
    pairs = {key: tuple(plain[key]) for key in ("smallest", "median", "largest", "clipped")}
    value_range = None if plain["value_range"] is None else tuple(plain["value_range"])
    broken = {int(index): why for index, why in plain["broken"].items()}
    return Met(**{**plain, **pairs, "value_range": value_range, "broken": broken})


def _write(path: Path, key: str, decoded: Decoded) -> None:
    with replacing(path) as temporary:
        save_file(
            {"images": decoded.images.images, "labels": decoded.images.labels},
            temporary,
            metadata={
                "key": key,
                "classes": json.dumps(decoded.classes),
                "fingerprint": decoded.fingerprint,
                "met": json.dumps(asdict(decoded.met)),
            },
        )
