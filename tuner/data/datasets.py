"""The official images of each data set: found, fetched, decoded once and kept.

What takes long to decode is kept as safetensors beside its source, or in the data folder, and
mapped from there the next time.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import socket
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tuner.config import DataConfig
from tuner.errors import DataError
from tuner.schema import did_you_mean
from tuner.storage.files import replacing
from tuner.storage.paths import check_path

KNOWN = ("cifar10", "cifar100", "digits")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff")
DIGITS_TEST_SHARE = 0.2
"""scikit-learn's digits come without a test set."""
SPLIT_SEED = 20120401
"""The same for every run: only so can validation probabilities of different runs be combined."""
DECODER = 1
"""To be raised when the same files decode to other images, for caches to be made anew."""

Part = Literal["train", "test"]
ImageMode = Literal["L", "RGB"]
"""Pillow's modes: grey or coloured."""


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
class DatasetPart:
    """The training or the test images of a data set, as its authors divided them."""

    images: Images
    classes: tuple[str, ...]
    fingerprint: str
    """SHA-256 of images, labels and classes."""


def find_source(word: str) -> str:
    """Return a data set's name as it is and a folder by its full path, valid from anywhere.

    Raises:
        UsageError: If it is no path.
    """
    check_path(word)
    folder = Path(word).expanduser()
    return str(folder.absolute()) if word not in KNOWN and folder.is_dir() else word


def load_official(config: DataConfig, data_dir: Path, part: Part) -> DatasetPart:
    """Load the training or the test images, and touch no image of the other.

    Raises:
        DataError: If images are missing or unreadable.
    """
    source = config.source
    if source == "digits":
        return _digits(part, config.image_size or 8)
    size = config.image_size or 32
    if source in KNOWN:
        return _cached(
            [data_dir / source],
            f"{part}-{size}.safetensors",
            key=source,
            decode=lambda: _decode_cifar(source, part, size, data_dir),
        )
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"unknown dataset {source!r}{did_you_mean(source, KNOWN) or '.'} Give "
            f"{', '.join(KNOWN)} or a folder with train/<class>/ and test/<class>/."
        )
    try:
        files = _image_files(folder, part)
        key = _listing(files)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: {error.strerror or error}. Mend or remove it."
        ) from error
    resolved = folder.resolve()
    elsewhere = data_dir / f"{resolved.name}-{sha256(os.fsencode(resolved))[:8]}"
    return _cached(
        [folder / ".cifar-tune", elsewhere],
        f"{part}-{size}.safetensors",
        key=key,
        decode=lambda: _decode_files(files, size),
    )


def _digits(part: Part, size: int) -> DatasetPart:
    from sklearn.datasets import load_digits  # Half a second that only digits should wait for.

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    chosen = stratified(labels, round(DIGITS_TEST_SHARE * len(labels)))
    if part == "train":
        chosen = np.setdiff1d(np.arange(len(labels)), chosen)
    images = torch.from_numpy(np.round(digits.images[chosen, None] * (255 / 16)).astype(np.uint8))
    return _official(resized(images, size), torch.from_numpy(labels[chosen]), "0123456789")


def _decode_cifar(name: str, part: Part, size: int, data_dir: Path) -> DatasetPart:
    from torchvision.datasets import CIFAR10, CIFAR100  # A second; the cache needs none of it.

    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        with quiet_network():
            dataset = source(data_dir, train=part == "train", download=True)
    except (OSError, RuntimeError, EOFError, TarError, HTTPException, zlib.error) as error:
        raise DataError(
            f"no intact {name} in {data_dir}, and it could not be fetched "
            f"({getattr(error, 'reason', error)}). Put {source.filename} (MD5 {source.tgz_md5}) "
            f"into {data_dir}, or give --data digits, which needs no network."
        ) from error
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return _official(resized(images, size), torch.tensor(dataset.targets), dataset.classes)


@contextlib.contextmanager
def quiet_network() -> Iterator[None]:
    """Yield up after 20 silent seconds; keep progress off stdout, and off stderr but a terminal."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    stderr = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(stderr),
            contextlib.redirect_stderr(stderr),
            warnings.catch_warnings(),
        ):
            # NumPy 2.4.0 to 2.4.4 warns of the official batches: pytorch/vision#9340.
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(before)


def _image_files(folder: Path, part: Part) -> dict[str, list[os.DirEntry[str]]]:
    """List the images of each class, both in alphabetical order, looking into ``part`` alone."""
    files = {}
    for name in _classes(folder):
        with os.scandir(folder / part / name) as entries:
            found = [
                entry
                for entry in entries
                if not entry.name.startswith(".")
                and entry.name.lower().endswith(SUFFIXES)
                and entry.is_file()
            ]
        files[name] = sorted(found, key=lambda entry: entry.name)
        needed, why = (2, ", to train and to validate") if part == "train" else (1, "")
        if len(found) < needed:
            raise DataError(
                f"{folder / part / name}: needs at least {needed} images{why}, has {len(found)}. "
                f"Images end in {' '.join(SUFFIXES)}."
            )
    return files


def _classes(folder: Path) -> list[str]:
    """Return the names of the class folders, which train and test must have in common."""
    names: dict[str, set[str]] = {}
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise DataError(
                f"{folder / part}: no such folder. Give a folder with train/<class>/ and "
                "test/<class>/ of images."
            )
        with os.scandir(folder / part) as entries:
            names[part] = {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    for part, other in (("train", "test"), ("test", "train")):
        if missing := sorted(names[other] - names[part]):
            raise DataError(
                f"{folder / part}: has no folder {missing[0]!r}, which {other} has. Both need the "
                "same classes."
            )
    if len(names["train"]) < 2:
        raise DataError(
            f"{folder / 'train'}: needs at least 2 class folders, has {len(names['train'])}. Sort "
            "the images into a folder a class."
        )
    return sorted(names["train"])


def _listing(files: Mapping[str, Iterable[os.DirEntry[str]]]) -> str:
    """Return a digest that changes when an image comes, goes or is written to."""
    lines = [
        f"{name}/{entry.name} {entry.stat().st_size} {entry.stat().st_mtime_ns}"
        for name, entries in files.items()
        for entry in entries
    ]
    return sha256(os.fsencode("\n".join(lines)))


def _decode_files(files: Mapping[str, Sequence[os.DirEntry[str]]], size: int) -> DatasetPart:
    # One thread: 100 us an image of 32x32, nearly all of it Python's; two threads take 150.
    counts = [len(entries) for entries in files.values()]
    pixels = np.empty((sum(counts), size, size, 3), dtype=np.uint8)
    for entry, target in zip(itertools.chain(*files.values()), pixels, strict=True):
        target[:] = decode_file(entry.path, size)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return _official(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, [*files])


def decode_file(path: str | os.PathLike[str], size: int, mode: ImageMode = "RGB") -> np.ndarray:
    """Return the pixels of an image file, uint8, shape (size, size) or (size, size, 3).

    Raises:
        DataError: If it is missing or unreadable.
    """
    try:
        with Image.open(path) as image:
            # Lets JPEG decode at a smaller scale, but twice the size: a third of the time for
            # photographs of 500x375.
            image.draft(mode, (2 * size, 2 * size))
            return resized_pixels(image, size, mode)
    # Damaged files raise whatever Pillow's parsers run into: OSError, SyntaxError, struct.error...
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}). Mend or remove it."
        ) from error


def resized_pixels(image: Image.Image, size: int, mode: ImageMode = "RGB") -> np.ndarray:
    """Return the pixels of an image, uint8, shape (size, size) or (size, size, 3)."""
    converted = image.convert(mode)
    if converted.size != (size, size):
        converted = converted.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(converted)


def resized(images: Tensor, size: int) -> Tensor:
    """Return images uint8 (N, C, H, W) with sides of ``size`` pixels."""
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def _official(images: Tensor, labels: Tensor, classes: Sequence[str]) -> DatasetPart:
    fingerprint = Fingerprint()
    fingerprint.add(images)
    return DatasetPart(
        images=Images(images=images, labels=labels),
        classes=tuple(classes),
        fingerprint=fingerprint.of(labels, classes),
    )


class Fingerprint:
    """SHA-256 of images, which may come in batches, and of their labels and classes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._shape = [0]

    def add(self, images: Tensor) -> None:
        """Take the next images, uint8, shape (N, C, H, W)."""
        self._shape = [self._shape[0] + len(images), *images.shape[1:]]
        self._digest.update(images.contiguous().numpy().data)

    def of(self, labels: Tensor, classes: Sequence[str]) -> str:
        """Return the fingerprint in hexadecimal.

        Args:
            labels: int64, shape (N,), one an image.
            classes: Names of all classes, in the order of the labels.
        """
        self._digest.update(labels.numpy().data)
        self._digest.update(json.dumps([*self._shape, *classes]).encode())
        return self._digest.hexdigest()


def _cached(
    folders: Sequence[Path], name: str, *, key: str, decode: Callable[[], DatasetPart]
) -> DatasetPart:
    """Return what ``decode`` gave when ``key`` was the same, from the first of ``folders`` with it.

    Raises:
        DataError: If none of ``folders`` can be written.
    """
    key = f"{DECODER}:{key}"
    for folder in folders:
        if (known := _read_cache(folder / name, key)) is not None:
            return known
    official = decode()
    refusals = []
    for folder in folders:
        try:
            _write_cache(folder / name, key, official)
        except (OSError, SafetensorError) as error:
            refusals.append(f"{folder}: {error}")
        else:
            return official
    raise DataError(
        f"decoded images cannot be kept ({'; '.join(refusals)}). Give a --data-dir with room that "
        "can be written."
    )


def _read_cache(path: Path, key: str) -> DatasetPart | None:
    """Map the images of the cache at ``path``; ``None`` where it is absent, damaged or stale."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            return DatasetPart(
                images=Images(images=file.get_tensor("images"), labels=file.get_tensor("labels")),
                classes=tuple(json.loads(metadata["classes"])),
                fingerprint=metadata["fingerprint"],
            )
    except (OSError, SafetensorError):
        return None


def _write_cache(path: Path, key: str, official: DatasetPart) -> None:
    with replacing(path) as temporary:
        save_file(
            {"images": official.images.images, "labels": official.images.labels},
            temporary,
            metadata={
                "key": key,
                "classes": json.dumps(official.classes),
                "fingerprint": official.fingerprint,
            },
        )


def stratified(labels: np.ndarray, count: int) -> np.ndarray:
    """Choose ``count`` positions, each class by its share, the same ones every time.

    A smaller choice is part of a larger one.

    Args:
        labels: Integers from 0, shape (N,), every class present.
        count: From the number of classes, so that each is chosen from at least once, to N.

    Returns:
        Ascending positions, shape (count,).
    """
    # RandomState's stream is frozen for good (NEP 19); torch's and default_rng's may change.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    sizes = np.bincount(labels)
    by_class = order[np.argsort(labels[order], kind="stable")]
    rank_in_class = np.concatenate([np.arange(size) / size for size in sizes])
    return np.sort(by_class[np.argsort(rank_in_class, kind="stable")[:count]])


def sha256(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of all parts one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
