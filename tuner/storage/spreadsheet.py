"""CSV files that people open in spreadsheets: no cell is interpreted as a formula."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tuner.storage.files import write_text
from tuner.storage.paths import AnyPath, read_bytes

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Start of a text that is a formula to a spreadsheet, or would become one here."""


def harmless(value: Any) -> Any:
    """Return a cell's value, with ``'`` before text that a spreadsheet would run; numbers stay."""
    is_formula = isinstance(value, str) and _FORMULA.match(value) and not _is_number(value)
    return f"'{value}" if is_formula else value


def original(text: str) -> str:
    """Return the text that was passed to ``harmless``."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write_csv(path: AnyPath, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, whole or not at all."""
    write_text(path, csv_of(head, rows))


def csv_of(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV text."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([harmless(value) for value in row] for row in (head, *rows))
    return table.getvalue()


def read_csv(path: AnyPath) -> list[list[str]]:
    """Read the rows of a table that ``write_csv`` wrote, its head first.

    Raises:
        OSError: If it is no plain file, or cannot be read.
        ValueError: If it is no such table.
    """
    try:
        rows = csv.reader(io.StringIO(read_bytes(path).decode(), newline=""))
        return [[original(cell) for cell in row] for row in rows]
    except csv.Error as error:
        raise ValueError(f"{path.name}: {error}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
