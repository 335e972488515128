"""Records on disk: dataclasses as JSON, and one way to report that a file is damaged."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from safetensors import SafetensorError

from tuner.errors import TunerError, UsageError
from tuner.schema import build, parse_json, to_json
from tuner.storage.files import write_text
from tuner.storage.paths import AnyPath, read_text
from tuner.storage.patience import is_unwritable

T = TypeVar("T")


def write_record(path: AnyPath, record: Any) -> None:
    """Write a dataclass as JSON, whole or not at all.

    Raises:
        ValueError: If a number is NaN or infinite, for which JSON has no word.
    """
    write_text(path, to_json(record, indent=2) + "\n")


def read_record(
    path: AnyPath, cls: type[T], *, is_strict: bool = True, version: int | None = None
) -> T:
    """Read what ``write_record`` wrote.

    Args:
        path: The file.
        cls: The dataclass, or another type that an annotation can name.
        is_strict: Whether unknown keys are damage; otherwise they are ignored.
        version: The latest known ``schema_version``, if the record has one.

    Raises:
        UsageError: If it was written by a later version.
        TunerError: If the file is missing, or is no such record; the message names the field.
    """
    record = find_record(path, cls, is_strict=is_strict, version=version)
    if record is None:
        raise TunerError(f"{path}: damaged or unreadable: there is no such file")
    return record


def find_record(
    path: AnyPath, cls: type[T], *, is_strict: bool = True, version: int | None = None
) -> T | None:
    """Read what ``write_record`` wrote; ``None`` where there is no file.

    Raises:
        UsageError: As ``read_record``.
        TunerError: As ``read_record``.
    """
    with explaining_damage(path):
        try:
            plain = parse_json(read_text(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
    if version is not None and _is_later(plain, version):
        raise UsageError(f"{path.parent}: written by a later cifar-tune; upgrade to read it")
    with explaining_damage(path):
        return build(cls, plain, is_strict=is_strict)


def _is_later(plain: object, version: int) -> bool:
    found = plain.get("schema_version") if isinstance(plain, dict) else None
    return isinstance(found, int) and found > version


@contextmanager
def explaining_damage(path: AnyPath) -> Iterator[None]:
    """Report ``path`` as damaged if what is read from it is not what was written.

    A full disk is not damage: the error of a copy to it is raised unchanged.
    """
    try:
        yield
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error),
        *(RecursionError, OverflowError, SafetensorError, UsageError),
    ) as error:
        if is_unwritable(error):
            raise
        # Mistakes in a space name the file themselves.
        problem = str(error).removeprefix(f"{path}:").lstrip()
        raise TunerError(f"{path}: damaged or unreadable: {problem}") from error
