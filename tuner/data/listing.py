"""The images of a data set before any is opened: files or rows, with class and part."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tuner.data.tables import Table, read_images
from tuner.data.trees import Opener, Tree

Part = Literal["train", "val", "test"]
PARTS: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders, files and entries of ``split`` -> the part that they hold."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image."""

    name: str
    """The path of its file in the tree, or of the table that holds it."""
    label: int
    row: int = -1
    """In the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The images of a data set, by part; see ``find_listing``."""

    tree: Tree
    kind: str
    """The layout in words."""
    base: str
    """Path of the folder or file that holds the parts, for messages."""
    classes: tuple[str, ...]
    parts: Mapping[Part, Sequence[Item]]
    """Only ``train`` if all parts are still to be split off from it."""
    is_whole: bool = False
    """Whether validation and test images are to be split off from ``train``."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Files that should be images and cannot be read, with the reason."""
    part_of_broken: Mapping[str, Part] = field(default_factory=dict)
    """Broken file -> its part, if a table names it."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Reason -> files or rows that it excludes from the data set."""
    notes: tuple[str, ...] = ()
    """Notes to show to the user unasked."""
    tables: Mapping[str, Table] = field(default_factory=dict)
    """Tables that hold images, by name."""
    source: Path = Path()
    """The path that the user named."""
    is_of_rows: bool = False
    """Whether a table names the classes, rather than folders."""
    folder_of: Mapping[Part, str] = field(default_factory=dict)
    """Folder of each part, as the user would write it; empty if there are none."""

    def broken_of(self, part: Part) -> dict[str, str]:
        """Return the broken files that belong to a part, or to no known part, with the reason."""
        others = tuple(f"{folder}/" for name, folder in self.folder_of.items() if name != part)
        return {
            name: why
            for name, why in self.broken.items()
            if self.part_of_broken.get(name, part) == part
            and not self.tree.shown(name).startswith(others)
        }

    def class_shown(self, part: Part, index: int) -> str:
        """Return where the images of a class are, as the user would write it."""
        name = self.classes[index]
        if self.is_of_rows:
            return f"{self.base}: class {name!r}"
        return f"{self.folder_of.get(part, self.base)}/{name}"

    def shown(self, item: Item) -> str:
        """Return the path of an image as the user would write it."""
        if item.row < 0:
            return self.tree.shown(item.name)
        return self.tree.shown(self.tables[item.name].where(item.row))

    def read(self, items: Sequence[Item]) -> Iterator[tuple[int, Opener]]:
        """Yield the position of each image in ``items``, in the fastest order, and its opener."""
        by_table: defaultdict[str, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            by_table[item.name if item.row >= 0 else ""].append(index)
        for name, positions in by_table.items():
            some = [items[position] for position in positions]
            if name:
                found = read_images(self.tree, self.tables[name], [item.row for item in some])
            else:
                found = self.tree.read([item.name for item in some])
            for index, opener in found:
                yield positions[index], opener

    def stamps(self, items: Sequence[Item]) -> Iterator[str]:
        """Yield a line per image that changes with its content, its name and its class."""
        of_table = {name: self.tree.stamp(name) for name in self.tables}
        for item in items:
            stamp = of_table[item.name] if item.row >= 0 else self.tree.stamp(item.name)
            yield f"{item.label} {item.name} {item.row} {stamp}"
