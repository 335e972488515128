"""Detect how a folder, an archive or a manifest of images is laid out.

Class folders are read here, tables in ``tuner.data.manifests``.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tuner.data.archives import ARCHIVE_SUFFIXES, open_tree
from tuner.data.decoding import UNREAD_SUFFIXES, image_suffixes
from tuner.data.listing import PARTS, Item, Listing, Part
from tuner.data.manifests import find_saved_tables, listing_of_tables, part_of, told_broken
from tuner.data.names import check_classes, normal_form, shown
from tuner.data.tables import TABLE_SUFFIXES
from tuner.data.trees import FolderTree, Tree, parent_of, suffix_of
from tuner.errors import DataError
from tuner.schema import plural


def find_listing(path: Path, *, needs_train: bool = True) -> Listing:
    """Detect how images are laid out.

    Args:
        path: A folder, an archive or a manifest.
        needs_train: Whether there must be two classes to train on, the same ones in all parts.

    Raises:
        DataError: If no listing is found, more than one could be meant, or its classes cannot be
            told apart.
    """
    if path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
        tree: Tree = FolderTree(path.parent, is_walked=False)
        listing = listing_of_tables(
            tree, {path.name: None}, is_required=True, needs_train=needs_train
        )
    else:
        found = open_tree(path)
        if found is None and path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES):
            raise DataError(f"{path}: is not a valid archive, or is incomplete. Replace it.")
        if found is None:
            raise DataError(
                f"{path}: is not a folder, archive (.zip, .tar, .tar.gz) or manifest "
                f"({', '.join(TABLE_SUFFIXES)}). Give one."
            )
        listing = _of_tree(found, needs_train=needs_train)
    assert listing is not None
    check_classes(listing.classes, listing.base)
    return replace(listing, source=path)


def _of_tree(tree: Tree, *, needs_train: bool) -> Listing:
    saved = find_saved_tables(tree)
    if saved is not None:
        listing = listing_of_tables(tree, saved, is_required=True, needs_train=needs_train)
        assert listing is not None
        return listing
    suffixes = image_suffixes()
    images = [name for name in tree.files if suffix_of(name) in suffixes]
    tables = [name for name in tree.files if suffix_of(name) in TABLE_SUFFIXES]
    base = _common_folder([*images, *tables])
    beside = [name for name in tables if parent_of(name) in (base, f"{base}/data".lstrip("/"))]
    by_table = listing_of_tables(
        tree,
        {name: part_of(name) for name in beside},
        is_required=not images,
        needs_train=needs_train,
    )
    if by_table is not None:
        return by_table
    if not images:
        kinds = Counter(suffix_of(name) or "without a suffix" for name in tree.files)
        met = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        raise DataError(
            f"{tree.shown('')}: holds no images that can be read{f', only {met}' if met else ''}. "
            f"Images end in {' '.join(sorted(suffixes))}.{told_broken(tree, tree.broken)}"
        )
    base = _base_of(images)
    if not needs_train and all(parent_of(name) == base for name in images):
        # A single class folder.
        base = parent_of(base)
    return _of_folders(tree, base, images, needs_train=needs_train)


def _base_of(images: Sequence[str]) -> str:
    """Return the folder that holds parts or classes; single images around it form no class."""
    base, inside = _common_folder(images), list(images)
    while True:
        inside = [name for name in inside if parent_of(name) != base]
        if len({parent_of(name) for name in inside}) < 2:
            return base
        deeper = _common_folder(inside)
        if deeper == base:
            return base
        base = deeper


def _common_folder(names: Sequence[str]) -> str:
    """Return the deepest folder that holds all names and neither is nor lies in a part's folder."""
    if not names:
        return ""
    folders = sorted({parent_of(name) for name in names}, key=lambda folder: folder.split("/"))
    # What the first and the last have in common, all between them have, too.
    common = folders[0].split("/") if folders[0] else []
    last = folders[-1].split("/")
    while last[: len(common)] != common:
        common.pop()
    named = [index for index, part in enumerate(common) if part.lower() in PARTS]
    return "/".join(common[: named[0]] if named else common)


def _of_folders(tree: Tree, base: str, images: Sequence[str], *, needs_train: bool) -> Listing:
    below = len(base) + 1 if base else 0
    where = tree.shown(base)
    tops = dict.fromkeys(name[below:].partition("/")[0] for name in images if "/" in name[below:])
    # A part with only empty folders is still a part.
    tops |= {
        folder[below:]: None
        for folder in sorted(tree.folders)
        if folder.startswith(f"{base}/" if base else "") and folder[below:].lower() in PARTS
    }
    direct = {name[below:].partition("/")[0] for name in images if name[below:].count("/") == 1}
    named = [top for top in tops if top.lower() in PARTS]
    # A class may also be called train.
    are_classes = named and all(top in direct for top in tops) and len(tops) > len(named)
    if named and not are_classes:
        return _of_parts(tree, base, images, named, needs_train=needs_train)
    folders = {parent_of(name) for name in images} - {base}
    loose = [name for name in images if parent_of(name) == base]
    labelled = [name for name in images if parent_of(name) != base]
    least = 2 if needs_train else 1
    if len(folders) < least:
        raise DataError(
            f"{where}: needs at least {plural(least, 'class folder')}, has {len(folders)}. Sort "
            "the images into a folder a class, or add a labels.csv with the columns path and label."
            f"{told_broken(tree, tree.broken)}"
        )
    _check_no_parts(tree, folders)
    names = _class_names(folders, base, where)
    notes = _told_names(names)
    if are_classes:
        notes.append(f"'{named[0]}' is read as a class, since it holds images and no folders")
    listing = Listing(
        tree=tree,
        kind="class folders",
        base=where,
        classes=tuple(sorted(names.values())),
        parts={"train": _items(labelled, names)},
        is_whole=True,
    )
    return _complete(listing, (base,), folders, loose, notes)


def _check_no_parts(tree: Tree, folders: Iterable[str]) -> None:
    """Check that class folders do not lie in folders of different parts."""
    parts: defaultdict[str, set[Part]] = defaultdict(set)
    for folder in sorted(folders):
        for above in PurePosixPath(folder).parents:
            if part := PARTS.get(above.name.lower()):
                parts[parent_of(str(above))].add(part)
    for parent, found in parts.items():
        if len(found) > 1:
            raise DataError(
                f"{tree.shown(parent)}: is divided into {' and '.join(sorted(found))}, and there "
                "are images elsewhere, too. Name that folder alone."
            )


def _of_parts(
    tree: Tree, base: str, images: Sequence[str], named: Sequence[str], *, needs_train: bool
) -> Listing:
    where = tree.shown(base)
    folder_of: dict[Part, str] = {}
    for top in named:
        part = PARTS[top.lower()]
        if part in folder_of:
            raise DataError(
                f"{where}: {PurePosixPath(folder_of[part]).name} and {top} could both be the "
                f"{part} images. Rename or remove one."
            )
        folder_of[part] = f"{base}/{top}" if base else top
    if needs_train and "train" not in folder_of:
        raise DataError(
            f"{where}/train: no such folder, next to {', '.join(named)}. Give a folder with "
            "train/<class>/, and test/<class>/ or val/<class>/ where there are such images."
        )
    names: dict[str, str] = {}
    by_part: dict[Part, set[str]] = {}
    loose: list[str] = []
    labelled: dict[Part, list[str]] = {}
    form_of: dict[str, str] = {}
    # Parts may write a class in different Unicode forms; that of the training images is kept.
    for part in sorted(folder_of, key=lambda part: part != "train"):
        folder = folder_of[part]
        inside = [name for name in images if name.startswith(f"{folder}/")]
        loose += [name for name in inside if parent_of(name) == folder]
        labelled[part] = [name for name in inside if parent_of(name) != folder]
        holding = {parent_of(name) for name in labelled[part]}
        # Only empty folders that hold no folder count.
        leaves = {f for f in tree.folders if f.startswith(f"{folder}/")}
        leaves -= {parent_of(leaf) for leaf in leaves}
        # A folder inside a class folder is not a class.
        leaves = {
            leaf for leaf in leaves if holding.isdisjoint(map(str, PurePosixPath(leaf).parents))
        }
        own = _class_names(holding | leaves, folder, tree.shown(folder))
        check_classes(sorted(own.values()), tree.shown(folder))
        own = {leaf: form_of.setdefault(normal_form(name), name) for leaf, name in own.items()}
        names |= own
        by_part[part] = set(own.values())
    parts = {part: labelled[part] for part in folder_of if by_part[part]}
    if needs_train:
        if len(by_part["train"]) < 2:
            raise DataError(
                f"{tree.shown(folder_of['train'])}: needs at least 2 class folders, has "
                f"{len(by_part['train'])}. Sort the images into a folder a class."
            )
        _check_same({tree.shown(folder_of[part]): by_part[part] for part in parts})
    listing = Listing(
        tree=tree,
        kind=f"class folders in {', '.join(PurePosixPath(folder_of[part]).name for part in parts)}",
        base=where,
        classes=tuple(sorted(set(names.values()))),
        parts={part: _items(found, names) for part, found in parts.items()},
        folder_of={part: tree.shown(folder) for part, folder in folder_of.items()},
    )
    used = tuple(folder_of.values())
    return _complete(listing, used, set(names), loose, _told_names(names))


def _check_same(classes: Mapping[str, set[str]]) -> None:
    """Check that all parts have the same classes."""
    for first, second in ((a, b) for a in classes for b in classes if a != b):
        if missing := sorted(classes[second] - classes[first]):
            raise DataError(
                f"{first}: has no folder {shown(missing[0])!r}, which {Path(second).name} has. "
                "Both need the same classes."
            )


def _class_names(folders: set[str], base: str, where: str) -> dict[str, str]:
    """Return the class of each folder that holds images: its path below ``base``."""
    below = len(base) + 1 if base else 0
    for folder in sorted(folders):
        for above in list(PurePosixPath(folder).parents)[:-1]:
            if str(above) in folders and str(above) != base:
                raise DataError(
                    f"{where}: {shown(str(above)[below:])} holds images, and so does "
                    f"{shown(folder[below:])}. If that is a class of its own, move the images of "
                    "the first into a folder, too; if not, move all into one folder."
                )
    names = {folder: folder[below:] for folder in folders}
    # CLASS/images/1.jpg: the last folder distinguishes nothing.
    while names and all("/" in name for name in names.values()):
        heads = {folder: parent_of(name) for folder, name in names.items()}
        tails = {PurePosixPath(name).name for name in names.values()}
        if len(tails) > 1 or len(set(heads.values())) < len(heads):
            break
        names = heads
    return names


def _told_names(names: Mapping[str, str]) -> list[str]:
    nested = sorted(name for name in names.values() if "/" in name)
    if not nested:
        return []
    return [f"classes lie in folders of folders and are named after all: '{shown(nested[0])}'"]


def _items(files: Sequence[str], names: Mapping[str, str]) -> list[Item]:
    """Return the images, class by class, each in the order of the files' names."""
    position = {name: index for index, name in enumerate(sorted(set(names.values())))}
    by_class: defaultdict[int, list[str]] = defaultdict(list)
    for file in files:
        by_class[position[names[parent_of(file)]]].append(file)
    return [
        Item(file, label) for label, inside in sorted(by_class.items()) for file in sorted(inside)
    ]


def _complete(
    listing: Listing,
    used: Sequence[str],
    folders: set[str],
    loose: Sequence[str],
    notes: Sequence[str],
) -> Listing:
    """Add the files that are left out or broken to a listing.

    Args:
        listing: The listing without them.
        used: The folders that are read.
        folders: The class folders.
        loose: Images in no class folder.
        notes: The notes so far.
    """
    tree, suffixes = listing.tree, image_suffixes()

    def is_used(name: str) -> bool:
        return any(not folder or name.startswith(f"{folder}/") for folder in used)

    broken = {
        name: why
        for name, why in tree.broken.items()
        if is_used(name) or name == "." or name.startswith(("/", "../"))
    }
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    for name in tree.files:
        suffix = suffix_of(name)
        if is_used(name) and suffix in UNREAD_SUFFIXES:
            broken[name] = f"images of this kind ({suffix}) are not read; convert it"
        elif suffix not in suffixes:
            left_out[f"not an image ({suffix or 'no suffix'})"].append(name)
        elif not is_used(name):
            left_out[f"next to {', '.join(PurePosixPath(folder).name for folder in used)}"].append(
                name
            )
    if loose:
        left_out["in no class folder, so without a label"] += loose
    empty = sorted(tree.folders - folders - {parent_of(f) for f in tree.folders} - set(used))
    if listing.is_whole and (bare := [folder for folder in empty if is_used(folder)]):
        left_out["folder without images"] += bare
    told = [
        f"left out: {plural(len(names), 'file')} {reason}"
        for reason, names in left_out.items()
        if any(parent_of(name) in folders for name in names)
        or "label" in reason
        or reason.startswith(("next to", "folder"))
    ]
    return replace(
        listing,
        broken=dict(sorted(broken.items())),
        left_out={reason: tuple(names) for reason, names in left_out.items()},
        notes=(*notes, *told),
    )
