"""Files that are written whole or not at all."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tuner.storage.paths import AnyPath, storage_of
from tuner.storage.patience import persevere


def replacing(path: AnyPath, *, flush: bool = True) -> AbstractContextManager[Path]:
    """Yield a temporary path that replaces ``path`` when the block ends without an error.

    The bytes are flushed to disk before the rename, so that a reader, or a crash at any moment,
    finds the old file or the new one, never a part. If the block raises, ``path`` is left
    unchanged. A file for a bucket is written to the local disk, and uploaded at the end.
    """
    return storage_of(path).replacing(path, flush=flush)


def remove_leftovers(folder: AnyPath) -> None:
    """Remove all unfinished files from a folder in which nobody works any more."""
    storage_of(folder).remove_leftovers(folder)


def remove_abandoned(folder: AnyPath) -> None:
    """Remove temporary files and folders whose process is gone, but none of a live one."""
    storage_of(folder).remove_abandoned(folder)


def write_text(path: AnyPath, text: str, *, flush: bool = True) -> None:
    """Write ``text`` as UTF-8, whole or not at all; see ``tuner.storage.patience``.

    Args:
        path: The file.
        text: Its content.
        flush: If not, a power loss may leave it empty, but writing is some milliseconds faster.
    """

    def write() -> None:
        with replacing(path, flush=flush) as temporary:
            temporary.write_text(text, encoding="utf-8")

    persevere(write)


def write_json(path: AnyPath, plain: Any) -> None:
    """Write ``plain`` as JSON, whole or not at all; see ``write_text``.

    Raises:
        ValueError: If a number is NaN or infinite, for which JSON has no word.
    """
    write_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def append_line(path: AnyPath, line: str) -> None:
    """Append a line to a file, or create the file with it.

    In a bucket the file is read and rewritten: of two concurrent writers, one may lose its line.
    """
    storage_of(path).append(path, f"{line}\n".encode())
