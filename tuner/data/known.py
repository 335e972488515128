"""Data sets that are known by name: downloaded once, or part of an installed library."""

import contextlib
import io
import socket
import sys
import warnings
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from tarfile import TarError
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tuner.data.cache import Decoded, make_decoded
from tuner.data.decoding import resized
from tuner.data.stratified import TEST_SHARE, stratified
from tuner.errors import DataError

KNOWN = ("cifar10", "cifar100", "digits", "noisy-digits")
WITHOUT_NETWORK = ("digits", "noisy-digits")
"""Those that come with scikit-learn."""
NOISY_SIZE = 12
"""Side of a noisy digit in pixels."""
NOISY_TEST, NOISY_VAL = 897, 400
"""Test and validation images among the noisy digits; 500 are left to train on."""
OfficialPart = Literal["train", "test"]
"""Part of a data set as its authors divided it; validation images are among those to train on."""


def load_digits(part: OfficialPart, size: int) -> Decoded:
    """Return one part of scikit-learn's digits; the test images are chosen here."""
    pixels, labels = _read_digits()
    images = torch.from_numpy(np.round(pixels[:, None] * (255 / 16)).astype(np.uint8))
    return _part(images, labels, round(TEST_SHARE * len(labels)), part, size)


def load_noisy_digits(part: OfficialPart, size: int) -> tuple[Decoded, np.ndarray]:
    """Return digits that are hard to recognize, and the positions of the validation images.

    Each of scikit-learn's digits is rotated by up to 30 degrees, shrunk by up to a third, shifted
    and covered with noise, the same way every time. In seconds, where photographs take minutes,
    they show that networks differ and that several together are better than one.
    """
    pixels, labels = _read_digits()
    count = len(labels)
    # RandomState's stream is frozen for good (NEP 19).
    random = np.random.RandomState(0)
    angle = np.deg2rad(random.uniform(-30, 30, count))
    scale = random.uniform(1.0, 1.5, count)
    shift = random.uniform(-0.25, 0.25, (count, 2))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    rows = np.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], axis=1)
    grid = functional.affine_grid(
        torch.from_numpy(rows.reshape(count, 2, 3)),
        [count, 1, NOISY_SIZE, NOISY_SIZE],
        align_corners=False,
    )
    clean = functional.grid_sample(
        torch.from_numpy(pixels[:, None] / 16), grid, align_corners=False
    )
    noise = 0.1 * random.standard_normal(tuple(clean.shape))
    values = (0.15 + 0.7 * clean + torch.from_numpy(noise)).clamp(0, 1)
    images = (255 * values).round().to(torch.uint8)
    decoded = _part(images, labels, NOISY_TEST, part, size)
    return decoded, stratified(decoded.images.labels.numpy(), NOISY_VAL)


def _part(
    images: Tensor, labels: np.ndarray, num_test: int, part: OfficialPart, size: int
) -> Decoded:
    """Return one part of the digits, of which ``num_test`` are chosen as test images."""
    chosen = stratified(labels, num_test)
    if part == "train":
        chosen = np.setdiff1d(np.arange(len(labels)), chosen)
    chosen_labels = torch.from_numpy(labels[chosen])
    return make_decoded(resized(images[chosen], size), chosen_labels, "0123456789")


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits: pixels from 0 to 16, float64, shape (N, 8, 8), and labels.

    The file is read without importing the library, which takes more than half a second.
    """
    library = find_spec("sklearn")
    assert library is not None, "it is installed with this package"
    file = Path(str(library.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def decode_cifar(name: str, part: OfficialPart, size: int, data_dir: Path) -> Decoded:
    """Download CIFAR-10 or CIFAR-100 unless it is in ``data_dir``, and return a part of it.

    Raises:
        DataError: If it is not there and cannot be fetched.
    """
    from torchvision.datasets import CIFAR10, CIFAR100  # Takes a second; a cache skips it.

    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        with quiet_network():
            dataset = source(data_dir, train=part == "train", download=True)
    except (OSError, RuntimeError, EOFError, TarError, HTTPException, zlib.error) as error:
        raise DataError(
            f"no intact {name} in {data_dir}, and it could not be fetched "
            f"({getattr(error, 'reason', error)}). Put {source.filename} (MD5 {source.tgz_md5}) "
            f"into {data_dir}, or name its folder with --data-dir; a search with "
            "--data digits needs no network."
        ) from error
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return make_decoded(resized(images, size), torch.tensor(dataset.targets), dataset.classes)


@contextlib.contextmanager
def quiet_network() -> Iterator[None]:
    """Time out after 20 silent seconds; show progress on stderr, and only on a terminal."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    stderr = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(stderr),
            contextlib.redirect_stderr(stderr),
            warnings.catch_warnings(),
        ):
            # NumPy 2.4.0 to 2.4.4 warns about the official batches: pytorch/vision#9340.
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(before)
