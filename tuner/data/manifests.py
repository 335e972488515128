"""Images that tables list: manifests, Parquet, and folders of ``datasets.save_to_disk``."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from tuner.data.decoding import image_suffixes
from tuner.data.listing import PARTS, Item, Listing, Part
from tuner.data.names import listed, normal_form, shown
from tuner.data.tables import BINARY_SUFFIXES, Table, check_size, read_table
from tuner.data.trees import Tree, parent_of, suffix_of
from tuner.errors import DataError
from tuner.schema import plural, whole_number


def find_saved_tables(tree: Tree) -> dict[str, Part | None] | None:
    """Return the Arrow files of a folder that ``datasets.save_to_disk`` wrote, with their parts.

    Other programs write files with these names, too: without Arrow files, return ``None``.
    """
    files = set(tree.files)
    holding = {parent_of(name) for name in tree.files if suffix_of(name) == ".arrow"}
    tops = {PurePosixPath(name).parts[0] for name in tree.files if "/" in name}
    bases = ["", *(f"{top}/" for top in tops)] if len(tops) == 1 else [""]
    for base in bases:
        if holding and f"{base}dataset_dict.json" in files:
            splits = _read_json(tree, f"{base}dataset_dict.json").get("splits")
            folders = [f"{base}{name}/" for name in splits] if isinstance(splits, list) else []
            found: dict[str, Part | None] = {}
            for folder in folders:
                part = PARTS.get(PurePosixPath(folder).name.lower())
                if part is not None:
                    found |= dict.fromkeys(_arrow_files(tree, folder), part)
            if not found:
                raise DataError(
                    f"{tree.shown(base)}: has no split {', '.join(PARTS)}. Save one by such a name."
                )
            return found
        if base.rstrip("/") in holding and f"{base}state.json" in files:
            return dict.fromkeys(_arrow_files(tree, base), None)
    return None


def _arrow_files(tree: Tree, folder: str) -> list[str]:
    state = _read_json(tree, f"{folder}state.json")
    if state.get("_indices_files"):
        raise DataError(
            f"{tree.shown(folder)}: holds an order of rows beside them, which is not read. Save it "
            "after dataset.flatten_indices()."
        )
    try:
        names = [f"{folder}{entry['filename']}" for entry in state["_data_files"]]
    except (KeyError, TypeError):
        names = []
    if not names:
        raise DataError(
            f"{tree.shown(f'{folder}state.json')}: does not name the Arrow files next to it. Save "
            "the data set again."
        )
    for name in names:
        if why := tree.why_missing(name):
            raise DataError(f"{tree.shown(name)}: {why}. Save the data set again.")
    return names


def _read_json(tree: Tree, name: str) -> dict[str, Any]:
    try:
        plain = json.loads(tree.bytes_of(name))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{tree.shown(name)}: is not JSON ({error}). Mend it.") from error
    if not isinstance(plain, dict):
        raise DataError(f"{tree.shown(name)}: is not a mapping. Fix it.")
    return plain


def listing_of_tables(
    tree: Tree, names: Mapping[str, Part | None], *, is_required: bool, needs_train: bool
) -> Listing | None:
    """Return the layout that tables describe; ``None`` if they describe none.

    Args:
        tree: The tree that holds them.
        names: Names of the tables -> the part that each holds.
        is_required: Whether nothing else describes the layout.
        needs_train: As for ``find_listing``.
    """
    read: dict[str, Table | str] = {}
    tables: dict[str, Table] = {}
    num_rows = num_letters = 0
    for name in names:
        read[name] = found = read_table(tree, name)
        if isinstance(found, Table):
            tables[name] = found
            num_rows += len(found.labels)
            num_letters += found.num_letters
            check_size(num_rows, num_letters, tree.shown(""))
    if not tables:
        if not is_required or not read:
            return None
        reasons = (f"{tree.shown(name)}: {why}" for name, why in read.items())
        raise DataError(f"no labels to be read.{listed(reasons)}\nGive the columns path and label.")
    given = {names[name] for name in tables}
    if (
        len(tables) > 1
        and None in given
        and not all(suffix_of(name) in BINARY_SUFFIXES for name in tables)
    ):
        raise DataError(
            f"{tree.shown('')}: {' and '.join(map(shown, tables))} could all be the labels. Name "
            "one, as in --data FOLDER/labels.csv, or call them train.csv and test.csv."
        )
    return _Rows(tree).listing(tables, names, needs_train=needs_train)


class _Rows:
    """Collects the rows of tables."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.found: dict[Part | None, list[tuple[Table, int, str]]] = defaultdict(list)
        self.broken: dict[str, str] = {}
        self.part_of_broken: dict[str, Part] = {}
        self.unlabelled: list[str] = []
        self.seen: dict[str, str] = {}
        self.form_of: dict[str, str] = {}
        """Unicode's normal form of a label -> the form in which it was met first."""

    def listing(
        self, tables: Mapping[str, Table], parts: Mapping[str, Part | None], *, needs_train: bool
    ) -> Listing:
        """Return the images that these tables list."""
        for name, table in tables.items():
            for row in range(len(table.labels)):
                self._enter(table, row, parts[name])
        classes = _table_classes(self.found)
        position = {name: index for index, name in enumerate(classes)}
        where = self.tree.shown(next(iter(tables))) if len(tables) == 1 else self.tree.shown("")
        if len(classes) < (2 if needs_train else 1):
            raise DataError(
                f"{where}: needs at least {'2 classes' if needs_train else '1 class'}, has "
                f"{len(classes)}.{told_broken(self.tree, self.broken)}"
            )
        if None in self.found and len(self.found) > 1:
            raise DataError(f"{where}: some rows have a split and some have none. Give all one.")
        items: dict[Part, list[Item]] = {
            part or "train": [
                Item(path or table.name, position[label], row if path is None else -1)
                for table, row, label in rows
                for path in [table.path(row)]
            ]
            for part, rows in self.found.items()
        }
        if needs_train:
            self._check_same(items, classes, where)
        left_out: dict[str, Sequence[str]] = {}
        if self.unlabelled:
            left_out["row without a label"] = self.unlabelled
        if unlisted := self._unlisted():
            left_out["not named by the table"] = unlisted
        return Listing(
            tree=self.tree,
            kind=f"table {', '.join(map(shown, tables))}",
            base=where,
            is_of_rows=True,
            classes=classes,
            parts=items,
            is_whole=None in self.found,
            broken=self.broken,
            part_of_broken=self.part_of_broken,
            left_out=left_out,
            notes=(
                *(_notes_on_splits(tables.values()) if None in self.found else ()),
                *(
                    f"left out: {plural(len(found), 'image')}, {reason}"
                    for reason, found in left_out.items()
                ),
            ),
            tables={name: table for name, table in tables.items() if None in table.paths},
        )

    def _check_same(
        self, items: Mapping[Part, Sequence[Item]], classes: Sequence[str], where: str
    ) -> None:
        """Check that there are training images, and that all parts have the same classes."""
        if "train" not in items:
            raise DataError(
                f"{where}: no image is of the split 'train'. Name training images so."
                f"{told_broken(self.tree, self.broken)}"
            )
        for part in items.keys() - {"train"}:
            present = {item.label for item in items[part]}
            trained = {item.label for item in items["train"]}
            if lacking := sorted(present ^ trained):
                has, lacks = ("train", part) if lacking[0] in trained else (part, "train")
                raise DataError(
                    f"{where}: class {classes[lacking[0]]!r} has images in {has} and none in "
                    f"{lacks}. Both need the same classes.{told_broken(self.tree, self.broken)}"
                )

    def _enter(self, table: Table, row: int, part: Part | None) -> None:
        where = self.tree.shown(table.where(row))
        label = table.label(row)
        if label is None:
            self.unlabelled.append(where)
            return
        if table.splits is not None:
            word = table.splits[row]
            if word not in (None, ""):
                found = PARTS.get(str(word).strip().lower())
                if found is None:
                    raise DataError(
                        f"{where}: the split '{shown(str(word))[:50]}' is none of "
                        f"{', '.join(PARTS)}. Write one of them."
                    )
                part = found
        if (path := table.path(row)) is not None:
            if path in self.seen:
                raise DataError(
                    f"{where}: names {shown(path)}, as {self.seen[path]} does. Remove one of the "
                    "two."
                )
            self.seen[path] = where
            if why := self.tree.why_missing(path):
                self.broken[path] = f"{why} ({where})"
                if part is not None:
                    self.part_of_broken[path] = part
                return
        self.found[part].append((table, row, self.form_of.setdefault(normal_form(label), label)))

    def _unlisted(self) -> list[str]:
        if not self.seen:
            return []
        suffixes = image_suffixes()
        return [n for n in self.tree.files if suffix_of(n) in suffixes and n not in self.seen]


def _notes_on_splits(tables: Iterable[Table]) -> Iterator[str]:
    """Yield a note about each column that holds parts and is not called ``split``."""
    words: defaultdict[str, set[str]] = defaultdict(set)
    for table in tables:
        for column, values in table.other_splits.items():
            words[column] |= {value.strip().lower() for value in values}
    for column, found in words.items():
        if found and found <= PARTS.keys():
            yield (
                f"the column '{shown(column)}' holds {', '.join(sorted(found))} and is not used; "
                "call it 'split' to divide the images by it"
            )


def told_broken(tree: Tree, broken: Mapping[str, str]) -> str:
    """Return which files cannot be read and why, as text; empty if there are none."""
    lines = [f"{tree.shown(name)}: {why}" for name, why in sorted(broken.items())]
    return f" {plural(len(lines), 'file')} cannot be read:{listed(lines)}" if lines else ""


def _table_classes(
    found: Mapping[Part | None, list[tuple[Table, int, str]]],
) -> tuple[str, ...]:
    """Return the classes in the order of the table's class names, of numbers, or alphabetically."""
    present = {label for rows in found.values() for _, _, label in rows}
    listed_names = {table.class_names for rows in found.values() for table, _, _ in rows[:1]}
    if len(listed_names) == 1 and (names := next(iter(listed_names))) is not None:
        return tuple(name for name in names if name in present)
    if all(whole_number(label) is not None for label in present):
        return tuple(sorted(present, key=lambda label: (whole_number(label) or 0, label)))
    return tuple(sorted(present))


def part_of(name: str) -> Part | None:
    """Return the part that a table's name begins with: ``train-00000-of-00001.parquet``."""
    stem = PurePosixPath(name).stem.lower()
    for separator in "-_.":
        stem = stem.partition(separator)[0]
    return PARTS.get(stem)
