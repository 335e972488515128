"""The SHA-256 of a file, wherever it is stored."""

import hashlib

from tuner.storage.paths import AnyPath, on_disk


def sha256_of(path: AnyPath) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: If it is no plain file, or cannot be read.
    """
    with on_disk(path) as local, local.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
