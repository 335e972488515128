"""Files that are written whole or not at all."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tuner.storage.paths import storage_of
from tuner.storage.patience import persevere
from tuner.storage.protocol import StoragePath


def replacing(path: StoragePath, *, flush: bool = True) -> AbstractContextManager[Path]:
    """Yield a temporary path that takes the place of ``path`` when the block ends well.

    The bytes are flushed to disk before the rename, so that a reader, or a crash at any moment,
    finds the old file or the new one, never a part. When the block raises, ``path`` is left as it
    was. What belongs in a bucket is written on the disk here, and sent at the end.
    """
    return storage_of(path).replacing(path, flush=flush)


def remove_leftovers(folder: StoragePath) -> None:
    """Remove all that was being written in a folder in which nobody works any more."""
    storage_of(folder).remove_leftovers(folder)


def remove_abandoned(folder: StoragePath) -> None:
    """Remove temporary files and folders whose process is gone, and none of a live one."""
    storage_of(folder).remove_abandoned(folder)


def write_text(path: StoragePath, text: str, *, flush: bool = True) -> None:
    """Write ``text`` as UTF-8, whole or not at all; see ``tuner.storage.patience``.

    Args:
        path: The file.
        text: Its content.
        flush: If not, a loss of power may leave it empty, and it takes some milliseconds less.
    """

    def write() -> None:
        with replacing(path, flush=flush) as temporary:
            temporary.write_text(text, encoding="utf-8")

    persevere(write)


def write_json(path: StoragePath, plain: Any, *, flush: bool = True) -> None:
    """Write ``plain`` as JSON, whole or not at all; see ``write_text``.

    Raises:
        ValueError: If a number is NaN or infinite, for which JSON has no word.
    """
    write_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n", flush=flush)


def append_line(path: StoragePath, line: str) -> None:
    """Add a line to a file, or begin one with it.

    In a bucket a file is read and written anew: of two writers at once one may lose its line.
    """
    storage_of(path).append(path, f"{line}\n".encode())
