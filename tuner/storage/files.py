"""Files that are written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuner.storage.object_path import Remote
from tuner.storage.paths import AnyPath, check_file


@contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
    """Yield a temporary path that takes the place of ``path`` when the block ends well.

    The bytes are flushed to disk before the rename, so that a reader, or a crash at any moment,
    finds the old file or the new one, never a part. When the block raises, ``path`` is left as it
    was. What belongs in a store is written on the disk here, and sent at the end.
    """
    if isinstance(path, Remote):
        with tempfile.TemporaryDirectory(prefix="cifar-tune-") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            path.upload(temporary)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: AnyPath) -> None:
    """Remove files that were being written when their process was killed; a store has none."""
    if not isinstance(folder, Remote):
        for leftover in folder.glob(".*"):
            leftover.unlink()


def write_text(path: AnyPath, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: AnyPath, plain: Any) -> None:
    """Write ``plain`` as JSON, whole or not at all.

    Raises:
        ValueError: If a number is NaN or infinite, for which JSON has no word.
    """
    write_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def append_line(path: AnyPath, line: str) -> None:
    """Add a line to a file, or begin one with it.

    In a store a file is read and written anew: of two writers at once one may lose its line.
    """
    if isinstance(path, Remote):
        before = path.read_bytes() if path.exists() else b""
        path.write_bytes(before + f"{line}\n".encode())
        return
    if path.exists() or path.is_symlink():
        check_file(path)
    with path.open("a") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())
