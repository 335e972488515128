"""Predict many image files: decode them while the ensemble computes, in constant memory."""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from tuner.config import Tta
from tuner.data.decoding import UNREAD_SUFFIXES, Source, image_suffixes
from tuner.data.names import shown
from tuner.data.trees import Visits, suffix_of
from tuner.deploy.predictor import Ensemble, Vote
from tuner.deploy.preprocessing import Preprocessing
from tuner.errors import DataError

CHUNK = 32
"""Number of files that a thread decodes at a time."""
MOST_THREADS = 8
SMALL = 16 * 1024
"""File size in bytes up to which decoding is mostly Python: there, two threads that take turns at
the interpreter's lock need 1.5 to 2.2 times as long as one. Photographs are decoded in parallel,
outside that lock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Some files, in the given order, and the vote on the readable ones."""

    paths: tuple[str, ...]
    """Names of all files."""
    errors: tuple[str | None, ...]
    """Why each file could not be read, with its name; ``None`` for the readable ones."""
    pixels: Tensor
    """Pixels of the readable images, uint8, shape (N, C, H, W)."""
    vote: Vote


def find_images(paths: Iterable[str]) -> Iterator[str]:
    """Yield files unchanged, and the images in folders, at any depth, in alphabetical order.

    Images are recognized by their suffixes; hidden entries are skipped, and links are followed, but
    not in circles. Images of kinds that are not read are yielded, too, as is a folder without
    images, or one that cannot be listed: they cannot be read, and are reported as such.

    Raises:
        DataError: If links lead to the same folders without end, or folders lie too deep.
    """
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - a Path takes as long as everything else here.
            yield from _images_below(path, Visits(path)) or [path]
        else:
            yield path


def _images_below(
    folder: str, visits: Visits, above: tuple[tuple[int, int], ...] = ()
) -> list[str]:
    try:
        status = os.stat(folder)  # noqa: PTH116 - as in find_images.
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return [folder]
    identity = visits.enter(status, len(above))
    if identity in above:
        return []
    images = []
    suffixes = image_suffixes() | UNREAD_SUFFIXES
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            images += _images_below(entry.path, visits, (*above, identity))
        elif suffix_of(entry.name) in suffixes:
            images.append(entry.path)
    return images


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


ImageFile = tuple[str, Source | DataError]
"""A name for messages, and a path, content, or the reason why neither is available."""


def predict_paths(
    ensemble: Ensemble, paths: Iterable[str], *, tta: Tta | None = None
) -> Iterator[Batch]:
    """Predict files on disk, in the order of ``find_images``."""
    return predict_files(ensemble, ((path, _source(path)) for path in paths), tta=tta)


def _source(path: str) -> Source | DataError:
    """Return a path, or the reason why it is not read."""
    if os.path.isdir(path):  # noqa: PTH112 - as in find_images.
        reason = "a folder with no images in it"
        try:
            os.scandir(path).close()
        except OSError as error:
            reason = str(error.strerror)
    elif (suffix := suffix_of(path)) in UNREAD_SUFFIXES:
        # As in training: of a raw photo, Pillow would read the thumbnail.
        reason = f"images of this kind ({suffix}) are not read; convert it"
    else:
        return path
    return DataError(f"{shown(path)}: cannot be read as an image ({reason})")


def predict_files(
    ensemble: Ensemble, files: Iterable[ImageFile], *, tta: Tta | None = None
) -> Iterator[Batch]:
    """Predict files, one batch at a time.

    Threads decode the next two batches while one is computed; no more than these are in memory,
    however many files there are.

    Args:
        ensemble: The ensemble.
        files: The files; may be endless.
        tta: As for ``Ensemble.predict``.
    """
    for names, errors, pixels in decode_files(ensemble.preprocessing, files, ensemble.batch_size):
        if len(pixels):
            vote = ensemble.vote(pixels, tta=tta)
        else:
            vote = Vote(
                probs=torch.empty(0, len(ensemble.classes), dtype=torch.float64),
                members=torch.empty(len(ensemble.members), 0, len(ensemble.classes)),
            )
        yield Batch(paths=names, errors=errors, pixels=pixels, vote=vote)


Decoded = tuple[tuple[str, ...], tuple[str | None, ...], Tensor]


def decode_files(
    prepare: Preprocessing, files: Iterable[ImageFile], size: int
) -> Iterator[Decoded]:
    """Yield batches of about ``size`` files: names, errors, and pixels of the readable ones.

    Args:
        prepare: How to prepare the images.
        files: The files; may be endless.
        size: Maximum files per batch, rounded down to whole chunks.
    """
    threads = min(MOST_THREADS, torch.get_num_threads())
    left = iter(files)
    chunks: deque[Future[Decoded]] = deque()
    per_batch = max(1, size // CHUNK)
    alone = Lock()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def fill(count: int) -> None:
        while len(chunks) < count and (some := tuple(islice(left, CHUNK))):
            chunks.append(pool.submit(_decode_chunk, prepare, some, alone))

    try:
        fill(2 * per_batch)
        while chunks:
            parts = [chunks.popleft().result() for _ in range(min(per_batch, len(chunks)))]
            fill(2 * per_batch)
            names, errors, pixels = zip(*parts, strict=True)
            yield (
                tuple(name for part in names for name in part),
                tuple(error for part in errors for error in part),
                torch.cat(pixels),
            )
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_chunk(prepare: Preprocessing, files: tuple[ImageFile, ...], alone: Lock) -> Decoded:
    with alone if _is_small(files[0][1]) else nullcontext():
        errors, pixels = prepare.decode_each(
            [partial(_pixels, prepare, name, source) for name, source in files]
        )
    return tuple(name for name, _ in files), errors, pixels


def _pixels(prepare: Preprocessing, name: str, source: Source | DataError) -> np.ndarray:
    if isinstance(source, DataError):
        raise source
    return prepare.file_pixels(source, name)


def _is_small(source: Source | DataError) -> bool:
    if isinstance(source, DataError):
        return True
    if isinstance(source, io.BytesIO):
        return source.getbuffer().nbytes <= SMALL
    try:
        return os.stat(source).st_size <= SMALL  # noqa: PTH116 - as in find_images.
    except (OSError, ValueError):
        return True
