"""Cache of decoded images: safetensors files, which later loads memory-map."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tuner.data.decoding import Met
from tuner.errors import DataError
from tuner.storage.files import replacing

DECODER = 3
"""Increase it when the same files decode to other images, so that caches are rebuilt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Images with their labels."""

    images: Tensor
    """uint8, shape (N, C, H, W), contiguous."""
    labels: Tensor
    """int64, shape (N,)."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor | slice) -> Self:
        """Return the images of a slice, at some positions, or where a mask is true."""
        if isinstance(index, Tensor):
            index = index.to(self.images.device)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device) -> Self:
        """Return the images on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """The decoded images of one part of a data set, with statistics of its files."""

    images: Images
    classes: tuple[str, ...]
    fingerprint: str
    """SHA-256 of images, labels and classes."""
    met: Met = field(default_factory=Met)
    """Empty if no files were decoded."""


class Fingerprint:
    """SHA-256 of images, labels and classes; images may be added in batches and in any order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._waiting: dict[int, Tensor | None] = {}
        self._next = 0
        self._shape = [0]

    def add(self, images: Tensor) -> None:
        """Add the next images, uint8, shape (N, C, H, W)."""
        self._shape = [self._shape[0] + len(images), *images.shape[1:]]
        self._digest.update(images.contiguous().numpy().data)

    def place(self, position: int, image: Tensor | None) -> None:
        """Add one image at any time; images that come early wait for those before them.

        Args:
            position: Its position, from 0; no position may be left out.
            image: uint8, shape (C, H, W); ``None`` for an image that is left out after all.
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
            labels: int64, shape (N,), one per image.
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
    """Bundle images with their fingerprint."""
    return Decoded(
        images=Images(images=images, labels=labels),
        classes=tuple(classes),
        fingerprint=fingerprint_of(images, labels, classes),
        met=met or Met(),
    )


def cached(
    folders: Sequence[Path], name: str, *, key: str, decode: Callable[[], Decoded]
) -> Decoded:
    """Return the images cached under ``key`` in ``folders``, or decode and cache them.

    Raises:
        DataError: If none of ``folders`` can be written.
    """
    if (known := find_cached(folders, name, key=key)) is not None:
        return known
    decoded = decode()
    keep(folders, name, key=key, decoded=decoded)
    return decoded


def find_cached(folders: Sequence[Path], name: str, *, key: str) -> Decoded | None:
    """Return the first intact cache with this name and key in ``folders``, or ``None``."""
    found = (_read(folder / name, _versioned(key)) for folder in folders)
    return next((known for known in found if known is not None), None)


def keep(folders: Sequence[Path], name: str, *, key: str, decoded: Decoded) -> None:
    """Write decoded images to the first of ``folders`` that is writable.

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
    """Return the SHA-256 of the concatenated parts, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _versioned(key: str) -> str:
    return f"{DECODER}:{key}"


def _read(path: Path, key: str) -> Decoded | None:
    """Memory-map the cache at ``path``; return ``None`` if it is absent, damaged or stale."""
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
    # A damaged or manipulated cache is rebuilt, whatever is wrong with it.
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
    """Whether images and labels have the dtypes of a cache, with one valid label per image."""
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
