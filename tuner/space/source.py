"""A space file with its bases and overrides, merged into one tree."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tuner.config import AUTO
from tuner.errors import SpaceError, UsageError
from tuner.run.layout import RUN
from tuner.schema import FreeForm, Record, Schema, Tagged, did_you_mean
from tuner.space.axes import to_yaml
from tuner.space.tree import Mistakes, Node, below, compose
from tuner.storage.paths import check_path, read_text

_PACKAGE = Path(__file__).parents[1]
SHIPPED = next(
    (
        folder / "search_spaces"
        for folder in (_PACKAGE, _PACKAGE.parent, Path())
        if (folder / "search_spaces").is_dir()
    ),
    _PACKAGE / "search_spaces",
)
"""Inside the package in an installed wheel, next to it in a clone; on a cluster's head, in the
folder of a job that makes a space; on its other nodes, nowhere."""


def shipped() -> dict[str, Path]:
    """Return the spaces that come with the program, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}


def find_space(name: str) -> Path:
    """Find a space by its file or, if it comes with the program, by its name, such as ``quick``.

    Raises:
        SpaceError: If no space has that name.
        UsageError: If it is no path.
    """
    check_path(name)
    path = Path(name)
    if path.is_file() or path.suffix or len(path.parts) != 1:
        return path
    known = shipped()
    if name == AUTO:
        raise SpaceError(
            "auto: a space that search and plan make for the images of --data; the run keeps it as "
            "its space.yaml"
        )
    if name not in known:
        hint = did_you_mean(name, known) or f"; known are {', '.join(known)}"
        raise SpaceError(f"{name}: neither a file nor the name of a space{hint}")
    return known[name]


def load(path: Path, overrides: Sequence[str], schema: Schema, text: str | None = None) -> Node:
    """Read a space file, the files that it extends, and the overrides.

    Args:
        path: The YAML file.
        overrides: ``KEY=VALUE`` each: a dotted path into the file, and YAML that replaces what
            is there. A path may leave out the ``choice`` between a key and a branch's name.
        schema: Schema of the file; ``merge`` needs it.
        text: Read instead of the file; messages then name the file without a line.

    Returns:
        The top level, a mapping.

    Raises:
        SpaceError: If a file or an override cannot be read.
    """
    root = _load_file(path, schema, (), text)
    assert isinstance(root.value, dict)
    with Mistakes() as mistakes:
        for override in overrides:
            with mistakes.collected():
                root = _override(root, override)
    return root


def said_of(overrides: Iterable[str]) -> dict[str, Any]:
    """Return the keys that overrides set, also within mappings, with their values.

    Args:
        overrides: As in ``load``.

    Returns:
        Values by dotted path; the last override counts. Mappings and lists hold nodes.

    Raises:
        SpaceError: If what one says is no YAML.
    """
    return {key: value for word in overrides for key, value in _said(word).items()}


def _said(override: str) -> dict[str, Any]:
    key, _, text = override.partition("=")
    return _values(key.strip(), compose(text, "", lambda _: override))


def _values(path: str, node: Node | None) -> dict[str, Any]:
    found: dict[str, Any] = {path: node and node.value}
    if node is not None and isinstance(node.value, dict):
        for key, child in node.value.items():
            found |= _values(f"{path}.{key}", child)
    return found


def word_of(key: str, value: bool | float | str) -> str:
    """Return the override that sets a key to this value."""
    return f"{key}={to_yaml(value) if isinstance(value, float) else json.dumps(value)}"


def check_no_files(path: Path) -> None:
    """Make sure that a space names no other file; the space of a run never does.

    Raises:
        SpaceError: If it does, or cannot be read.
    """
    root = compose(_read_text(path), "", _placing(path))
    if root is None or not isinstance(root.value, dict):
        return
    if extends := root.value.get("extends"):
        raise extends.error("the space of a run extends no file; it is damaged")

    def refuse(node: Node) -> Node:
        assert isinstance(node.value, dict)
        if "source" not in node.value and "run" in node.value:
            raise node.error("the space of a run holds the network of that run; it is damaged")
        if "source" not in node.value and node.path.endswith("custom"):
            raise node.error("the space of a run holds the text of this network; it is damaged")
        return node

    for family in ("custom", "pretrained"):
        descend(root, family, refuse)


def merge(base: Node, node: Node, schema: Schema | None) -> Node:
    """Lay ``node`` over ``base``: mappings merge, everything else replaces.

    An axis counts as a value and replaces, except that the branches under two ``choice:`` mappings
    merge. If the schema is one of several records, ``{adamw: ...}`` replaces ``{sgd: ...}``.
    """
    old, new = base.value, node.value
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return node
    if isinstance(schema, Tagged):
        if "choice" in old and "choice" in new:
            branches = merge(old["choice"], new["choice"], _record(schema))
            return node.with_value({**new, "choice": branches})
        if "choice" in old or "choice" in new or old.keys() != new.keys():
            return node
        schema = _record(schema)
    if isinstance(schema, FreeForm):
        return node.with_value(old | new)
    if not isinstance(schema, Record):
        return node
    both = {key: merge(old[key], new[key], schema.fields.get(key)) for key in old if key in new}
    return node.with_value(old | new | both)


def descend(root: Node, family: str, change: Callable[[Node], Node]) -> Node:
    """Apply ``change`` to the mapping of a family of ``space.model``, also inside a choice."""
    return _descend(root, ("space", "model", family), change)


def _descend(node: Node, keys: tuple[str, ...], change: Callable[[Node], Node]) -> Node:
    if not isinstance(node.value, dict):
        return node
    if not keys:
        return change(node)
    steps = {keys[0]: keys[1:], "choice": keys}
    return node.with_value(
        {
            key: _descend(child, steps[key], change) if key in steps else child
            for key, child in node.value.items()
        }
    )


def words(node: Node | None) -> Iterator[Node]:
    """Return the nodes of a word or a choice of words; the grammar refuses anything else."""
    if node is not None and isinstance(node.value, dict):
        node = node.value.get("choice")
    nodes = node.value if node is not None and isinstance(node.value, tuple) else (node,)
    return (node for node in nodes if node is not None and isinstance(node.value, str))


def _record(schema: Tagged) -> Record:
    return Record(cls=dict, fields=schema.options, required=frozenset())


def _load_file(
    path: Path, schema: Schema, chain: tuple[Path, ...], text: str | None = None
) -> Node:
    if text is None:
        if (path.parent / RUN).exists():
            check_no_files(path)
        root = compose(_read_text(path), "", _placing(path))
    else:
        root = compose(text, "", lambda mark: str(path))
    if root is None:
        raise SpaceError(f"{path}: is empty; write at least a 'space:' with a 'model:'")
    if not isinstance(root.value, dict):
        raise root.error("the top level is not a mapping; begin with keys such as 'space:'")
    root = _with_dataset(root)
    assert isinstance(root.value, dict)
    if (extends := root.value.get("extends")) is None:
        return root
    if not isinstance(extends.value, str):
        raise extends.error("is not a name; write that of a file, or of a shipped space as cnn")
    try:
        check_path(extends.value)
    except UsageError as error:
        raise extends.error(str(error)) from None
    base = path.parent / extends.value
    if not base.is_file():
        known = shipped()
        if extends.value not in known:
            hint = did_you_mean(extends.value, known) or f"; shipped spaces are {', '.join(known)}"
            raise extends.error(
                f"no file {base} from this file's folder, and no shipped space of that name{hint}"
            )
        base = known[extends.value]
    if base.resolve() in (path.resolve(), *chain):
        raise extends.error(f"{base} extends this file in turn; break the circle")
    own = {key: child for key, child in root.value.items() if key != "extends"}
    return merge(_load_file(base, schema, (path.resolve(), *chain)), root.with_value(own), schema)


def _with_dataset(root: Node) -> Node:
    """Expand ``dataset: NAME`` to the mapping that it is short for, so that its keys merge."""
    assert isinstance(root.value, dict)
    node = root.value.get("dataset")
    if node is None or not isinstance(node.value, str):
        return root
    source = replace(node, path=below(node.path, "source"))
    return root.with_value({**root.value, "dataset": node.with_value({"source": source})})


def with_short_dataset(root: Node) -> Node:
    """Shorten a data set that has only a source to that source."""
    assert isinstance(root.value, dict)
    node = root.value.get("dataset")
    if node is None or not isinstance(node.value, dict) or node.value.keys() != {"source"}:
        return root
    source = replace(node.value["source"], path=node.path)
    return root.with_value({**root.value, "dataset": source})


def _placing(path: Path) -> Callable[[yaml.Mark | None], str]:
    def place(mark: yaml.Mark | None) -> str:
        return str(path) if mark is None else f"{path}:{mark.line + 1}:{mark.column + 1}"

    return place


def _read_text(path: Path) -> str:
    try:
        return read_text(path, encoding="utf-8-sig", is_own=True)
    except FileNotFoundError:
        raise SpaceError(f"{path}: there is no such file; check its name") from None
    except IsADirectoryError:
        raise SpaceError(f"{path}: is a folder; name a YAML file in it") from None
    except UnicodeDecodeError:
        raise SpaceError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise SpaceError(
            f"{path}: cannot be read ({error.strerror or error}); check the file"
        ) from error


def _override(root: Node, override: str) -> Node:
    key, equals, text = override.partition("=")
    override = " ".join(override.split())
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SpaceError(f"{override}: is not KEY=VALUE; write, say, space.batch_size=128")
    if parts[0] == "extends":
        raise SpaceError(f"{override}: a base cannot be overridden; name another file instead")
    path = ""
    for part in parts:
        path = below(path, part)
    blank = Node(value=None, path=path, place=override, key_place=override)
    new = compose(text, path, lambda _: override) or blank
    if parts == ["dataset"] and isinstance(new.value, str):
        # Another source; the other keys of the data set stay.
        parts, new = ["dataset", "source"], replace(new, path="dataset.source")
    return _put(root, parts, new, override)


def _put(parent: Node, parts: Sequence[str], new: Node, override: str) -> Node:
    key, *rest = parts
    if not isinstance(parent.value, dict):
        raise SpaceError(
            f"{override}: {parent.path} is not a mapping; override {parent.path} as a whole"
        )
    children = parent.value
    choice = children.get("choice")
    if key not in children and choice is not None and isinstance(choice.value, dict):
        return parent.with_value(children | {"choice": _put(choice, parts, new, override)})
    if rest:
        path = below(parent.path, key)
        child = children.get(key)
        if child is None or child.value is None:
            child = Node(value={}, path=path, place=override, key_place=override)
        new = _put(child, rest, new, override)
    return parent.with_value(children | {key: new})
