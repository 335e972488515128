"""Tables of images with their labels: CSV, JSON lines, Parquet and the Arrow files of ``datasets``.

An image is a path, relative to the table, or bytes in the table itself.
"""

import contextlib
import csv
import functools
import io
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tuner.data.names import shown
from tuner.data.trees import DAMAGE, MOST_FILES, MOST_TEXT, Opener, Tree
from tuner.errors import DataError
from tuner.schema import plural

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl")
BINARY_SUFFIXES = (".parquet", ".arrow")
TABLE_SUFFIXES = (*TEXT_SUFFIXES, *BINARY_SUFFIXES)
PATHS = ("path", "file_name", "filename", "file", "image_path", "image", "img")
LABELS = ("label", "labels", "class", "class_name", "target")
SPLIT = "split"
OTHER_SPLITS = ("subset", "set", "partition", "part", "phase", "data_split")
"""Names of columns that may hold the parts, too; they are not read as such."""
_ROWS = 64
"""Number of rows that are in memory at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of images; each list has one entry per row."""

    name: str
    """The path of its file in the tree."""
    labels: list[Any]
    """``None`` for a row without a label."""
    splits: list[Any] | None
    other_splits: Mapping[str, frozenset[str]]
    """Column of ``OTHER_SPLITS`` -> its distinct values; empty if there are ``splits``."""
    paths: list[str | None]
    """The image files' paths; ``None`` where the table holds the image."""
    image_column: str
    first_line: int | None
    """Line of the first row in a text file; ``None`` if rows are counted from 0."""
    class_names: tuple[str, ...] | None
    """The names that labels are positions in; ``None`` if labels are names themselves."""

    @property
    def num_letters(self) -> int:
        """Number of letters in all labels, splits and paths."""
        return sum(map(_num_letters, (self.labels, self.splits or (), self.paths)))

    def where(self, row: int) -> str:
        """Return the place of a row, for messages."""
        start = self.first_line
        return f"{self.name} row {row}" if start is None else f"{self.name}:{start + row}"

    def path(self, row: int) -> str | None:
        """Return the name in the tree of a row's file; ``None`` if the table holds the image."""
        if (path := self.paths[row]) is None:
            return None
        path = path.replace("\\", "/")
        return (
            path
            if path.startswith("/")
            else posixpath.normpath(posixpath.join(posixpath.dirname(self.name), path))
        )

    def label(self, row: int) -> str | None:
        """Return the name of a row's class.

        Raises:
            DataError: If it is a number without a name, or several labels.
        """
        label = self.labels[row]
        if isinstance(label, list | tuple | Mapping):
            raise DataError(
                f"{self.where(row)}: has several labels, and an image has one class. Write one."
            )
        if self.class_names is None:
            return None if label is None else str(label)
        if label is None or label == -1:
            return None
        if not isinstance(label, int) or not 0 <= label < len(self.class_names):
            raise DataError(
                f"{self.where(row)}: the label {label} is none of the {len(self.class_names)} "
                "classes. Mend it."
            )
        return self.class_names[label]


def read_table(tree: Tree, name: str) -> Table | str:
    """Read a table's columns except the images, or return why it is not such a table.

    Raises:
        DataError: If it is damaged, or two of its columns could be meant.
    """
    suffix = PurePosixPath(name).suffix.lower()
    return _read_binary(tree, name) if suffix in BINARY_SUFFIXES else _read_text(tree, name, suffix)


def _read_text(tree: Tree, name: str, suffix: str) -> Table | str:
    where = tree.shown(name)
    try:
        text = tree.bytes_of(name).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where}: is not UTF-8 text. Save it as UTF-8.") from None
    check_size(max(text.count("\n"), text.count("\r")), 0, where)
    columns, lines = (_json_lines if suffix == ".jsonl" else _csv_rows)(text, where)
    path, label = _column(columns, PATHS, where), _column(columns, LABELS, where)
    split = _column(columns, (SPLIT,), where)
    if path is None or label is None:
        return _lacking(path, label, columns)
    # Not earlier, because the lines of another table do not matter.
    rows = list(lines)
    empty = [index for index, row in enumerate(rows) if not isinstance(row.get(path), str)]
    first_line = 1 if suffix == ".jsonl" else 2
    if empty:
        raise DataError(f"{where}:{empty[0] + first_line}: '{path}' is not a path. Write one.")
    others = [] if split else _other_splits(columns)
    return Table(
        name=name,
        labels=[None if row.get(label) in (None, "") else row[label] for row in rows],
        splits=None if split is None else [row.get(split) for row in rows],
        other_splits={other: frozenset(str(row.get(other)) for row in rows) for other in others},
        paths=[row[path] for row in rows],
        image_column=path,
        first_line=first_line,
        class_names=None,
    )


Rows = Iterator[Mapping[str, Any]]


def _csv_rows(text: str, where: str) -> tuple[Sequence[str], Rows]:
    """Return the columns and the rows; rows are checked during iteration."""
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def rows() -> Rows:
        try:
            for cells in reader:
                if len(cells) != len(columns):
                    raise DataError(
                        f"{where}:{reader.line_num}: has {plural(len(cells), 'cell')}, and the "
                        f"first line {len(columns)}. Mend it; quote cells that hold {delimiter!r}."
                    )
                yield dict(zip(columns, cells, strict=True))
        except csv.Error as error:
            raise DataError(f"{where}:{reader.line_num}: {error}. Mend it.") from error

    try:
        columns = [column.strip() for column in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{where}: cannot be read ({error}). Mend it.") from error
    return columns, rows()


def _json_lines(text: str, where: str) -> tuple[Sequence[str], Rows]:
    """Return the columns of all lines and the rows; rows are checked during iteration."""

    def parsed(line: int, text: str) -> Mapping[str, Any]:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}:{line}: is not JSON ({error}). Mend it.") from error
        if not isinstance(row, dict):
            raise DataError(f'{where}:{line}: is not a mapping such as {{"path": ...}}. Mend it.')
        return row

    # JSON may contain other characters that Python treats as the end of a line.
    lines = text.removesuffix("\n").split("\n") if text else []
    if lines:
        parsed(1, lines[0])
    columns = dict.fromkeys(key for line in lines for key in _keys(line))
    return list(columns), (parsed(line, text) for line, text in enumerate(lines, 1))


def _keys(line: str) -> Iterable[str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    return row if isinstance(row, dict) else ()


def _column(columns: Iterable[str], known: Sequence[str], where: str) -> str | None:
    """Find the column of one meaning; the first of its names takes precedence."""
    found = [column for column in columns if column.strip().lower() in known]
    exact = [column for column in found if column.strip().lower() == known[0]]
    if len(exact or found) > 1:
        raise DataError(
            f"{where}: '{shown(found[0])}' and '{shown(found[1])}' could both be meant. Name one "
            f"column '{known[0]}'."
        )
    return next(iter(exact or found), None)


def _other_splits(columns: Sequence[str]) -> list[str]:
    return [
        column
        for column in columns
        if column.strip().lower() in OTHER_SPLITS and columns.count(column) == 1
    ]


def _lacking(path: str | None, label: str | None, columns: Iterable[str]) -> str:
    missing = " and ".join(
        word for word, column in (("'path'", path), ("'label'", label)) if column is None
    )
    present = [shown(column)[:50] for column in columns]
    more = f" and {len(present) - 20:,} more" if len(present) > 20 else ""
    return f"has no column {missing}, only {', '.join(present[:20]) or 'nothing'}{more}"


def _read_binary(tree: Tree, name: str) -> Table | str:
    where = tree.shown(name)
    with _explaining_arrow(where):
        schema, read, metadata = _opened(tree, name)
        image, label = _image_column(schema, where), _label_column(schema, where)
        if image is None or label is None:
            return _lacking(image, label, schema.names)
        names_files = _may_name_files(schema, metadata, image)
        split = _column(schema.names, (SPLIT,), where)
        for column in filter(None, (label, split)):
            if _pyarrow().types.is_nested(schema.field(column).type):
                raise DataError(f"{where}: '{column}' holds several values a row. Write one.")
        others = [
            other
            for other in ([] if split else _other_splits(schema.names))
            if other != label and _is_text(schema.field(other).type)
        ]
        wanted = [label, *([split] if split else others), *([image] if names_files else [])]
        columns: dict[str, list[Any]] = {column: [] for column in wanted}
        num_rows = num_letters = 0
        for batch in read(wanted):
            # Identical rows take almost no space in the file.
            num_rows += batch.num_rows
            check_size(num_rows, num_letters, where)
            for column in wanted:
                values = batch.column(column)
                found = _files_named(values) if column == image else values.to_pylist()
                num_letters += _num_letters(found)
                columns[column] += found
    if _is_text(schema.field(image).type) and None in columns[image]:
        row = columns[image].index(None)
        raise DataError(f"{where} row {row}: '{image}' is not a path. Write one.")
    return Table(
        name=name,
        labels=columns[label],
        splits=columns[split] if split else None,
        other_splits={other: frozenset(map(str, columns[other])) for other in others},
        paths=columns[image] if names_files else [None] * len(columns[label]),
        image_column=image,
        first_line=None,
        class_names=_class_names(schema, label),
    )


def check_size(num_rows: int, num_letters: int, where: str) -> None:
    """Refuse tables with more rows than a folder may have files, or with too much text.

    Raises:
        DataError: If there are more.
    """
    if num_rows > MOST_FILES:
        raise DataError(f"{where}: has more than {MOST_FILES:,} rows. Keep fewer.")
    if num_letters > MOST_TEXT:
        raise DataError(
            f"{where}: labels and paths have more than {MOST_TEXT:,} letters. Write shorter ones."
        )


def _num_letters(values: Iterable[Any]) -> int:
    return sum(len(value) for value in values if isinstance(value, str | bytes))


def read_images(tree: Tree, table: Table, rows: Sequence[int]) -> Iterator[tuple[int, Opener]]:
    """Yield the position in ``rows`` of each image that a table holds, and its opener.

    Args:
        tree: The tree that holds the table.
        table: The table.
        rows: Rows that name no file, in any order; they are read in the table's order.
    """
    where = tree.shown(table.name)
    order = sorted(range(len(rows)), key=rows.__getitem__)
    with _explaining_arrow(where):
        _, read, _ = _opened(tree, table.name)
        start, done = 0, 0
        for batch in read([table.image_column]):
            images = batch.column(table.image_column)
            while done < len(order) and rows[order[done]] < start + batch.num_rows:
                position = order[done]
                image = images[rows[position] - start].as_py()
                yield position, functools.partial(_bytes_of, image)
                done += 1
            start += batch.num_rows


def _bytes_of(image: Any) -> io.BytesIO:
    content = image.get("bytes") if isinstance(image, Mapping) else image
    if not isinstance(content, bytes):
        raise ValueError("the row holds no image")
    return io.BytesIO(content)


def _may_name_files(schema: "pa.Schema", metadata: Any, image: str) -> bool:
    """Whether rows may name files instead of holding images.

    If Parquet's statistics show that all rows hold images, no image is read to find out.
    """
    kind = schema.field(image).type
    is_struct = bool(_pyarrow().types.is_struct(kind))
    if metadata is None or not is_struct:
        return is_struct or _is_text(kind)
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(group.num_columns))
    told = [chunk.statistics for chunk in chunks if chunk.path_in_schema == f"{image}.bytes"]
    return not all(found and found.has_null_count and not found.null_count for found in told)


def _files_named(images: Any) -> list[str | None]:
    """Return the paths in a column of images; ``None`` for each image that it holds."""
    if _is_text(images.type):
        return list(images.to_pylist())
    parts = {part.name: column for part, column in zip(images.type, images.flatten(), strict=True)}
    if "path" not in parts or _pyarrow().types.is_nested(parts["path"].type):
        return [None] * len(images)
    rows = zip(parts["path"].to_pylist(), parts["bytes"].is_valid().to_pylist(), strict=True)
    return [path if isinstance(path, str) and not is_held else None for path, is_held in rows]


Batches = Callable[[list[str]], "Iterator[pa.RecordBatch]"]


def _opened(tree: Tree, name: str) -> "tuple[pa.Schema, Batches, Any]":
    """Return the schema of a Parquet or Arrow file, a reader of its columns, and statistics.

    The statistics are Parquet's metadata; an Arrow file has none.
    """
    pa = _pyarrow()
    source = tree.open(name)
    if isinstance(source, io.BytesIO):
        buffer = pa.BufferReader(source.getvalue())
    else:
        buffer = pa.memory_map(os.fspath(source))
    if name.lower().endswith(".parquet"):
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(buffer)
        return (
            file.schema_arrow,
            lambda columns: file.iter_batches(_ROWS, columns=columns),
            file.metadata,
        )
    stream = pa.ipc.open_stream(buffer)
    return stream.schema, lambda columns: _few_rows(stream, columns), None


def _few_rows(stream: "Iterable[pa.RecordBatch]", columns: list[str]) -> "Iterator[pa.RecordBatch]":
    """Split batches, which may hold all rows, into batches of a few rows."""
    for batch in stream:
        chosen = batch.select(columns)
        # Offsets that point outside of the file would crash the process.
        chosen.validate(full=True)
        for start in range(0, chosen.num_rows, _ROWS):
            yield chosen.slice(start, _ROWS)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            "Parquet and Arrow files are read by pyarrow, which is not installed here: "
            "pip install pyarrow"
        ) from error
    return pyarrow


@contextlib.contextmanager
def _explaining_arrow(where: str) -> Iterator[None]:
    """Turn pyarrow's errors about damaged files into a ``DataError``."""
    try:
        yield
    except (*DAMAGE, TypeError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: cannot be read ({text}). Make it again.") from error


def _is_text(kind: "pa.DataType") -> bool:
    types = _pyarrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _image_column(schema: "pa.Schema", where: str) -> str | None:
    types = _pyarrow().types

    def holds_bytes(kind: "pa.DataType") -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    if len(found) > 1:
        named = [name for name in found if name in ("image", "img")]
        if len(named) != 1:
            raise DataError(
                f"{where}: '{found[0]}' and '{found[1]}' could both be the images. Name one column "
                "'image'."
            )
        return str(named[0])
    if found:
        return str(found[0])
    texts = [field.name for field in schema if _is_text(field.type)]
    return _column(texts, PATHS, where)


def _label_column(schema: "pa.Schema", where: str) -> str | None:
    if column := _column(schema.names, LABELS, where):
        return column
    named = [name for name, kind in _features(schema).items() if kind.get("_type") == "ClassLabel"]
    if len(named) > 1:
        raise DataError(
            f"{where}: {' and '.join(named)} could all be the labels. Name one column 'label'."
        )
    return next(iter(named), None)


def _class_names(schema: "pa.Schema", label: str) -> tuple[str, ...] | None:
    feature = _features(schema).get(label, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _features(schema: "pa.Schema") -> dict[str, dict[str, Any]]:
    """Return the description of the columns that ``datasets`` wrote into the schema."""
    try:
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = written["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
