"""The data sets that are known by name: fetched once, or part of an installed library."""

import contextlib
import io
import socket
import sys
import warnings
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import Literal

import numpy as np
import torch

from tuner.data.cache import Decoded, make_decoded
from tuner.data.decoding import resized
from tuner.data.stratified import TEST_SHARE, stratified
from tuner.errors import DataError

KNOWN = ("cifar10", "cifar100", "digits")


def load_digits(part: Literal["train", "test"], size: int) -> Decoded:
    """Return scikit-learn's digits of a part; the test images are chosen here."""
    from sklearn import datasets  # Half a second that only digits should wait for.

    digits = datasets.load_digits()
    labels = digits.target.astype(np.int64)
    chosen = stratified(labels, round(TEST_SHARE * len(labels)))
    if part == "train":
        chosen = np.setdiff1d(np.arange(len(labels)), chosen)
    images = torch.from_numpy(np.round(digits.images[chosen, None] * (255 / 16)).astype(np.uint8))
    return make_decoded(resized(images, size), torch.from_numpy(labels[chosen]), "0123456789")


def decode_cifar(name: str, part: Literal["train", "test"], size: int, data_dir: Path) -> Decoded:
    """Fetch CIFAR-10 or CIFAR-100, if it is not in ``data_dir`` yet, and return a part of it.

    Raises:
        DataError: If it is not there and cannot be fetched.
    """
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
    return make_decoded(resized(images, size), torch.tensor(dataset.targets), dataset.classes)


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
