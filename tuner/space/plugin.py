"""The user's own networks of a space: the text of their file is read, checked and stored."""

from pathlib import Path

from tuner.errors import UsageError
from tuner.models.user_code import check_arguments, load_callable, load_module
from tuner.schema import join
from tuner.space.source import descend, words
from tuner.space.tree import FORMS, Node, file_of
from tuner.storage.paths import read_text


def with_sources(root: Node, space: Path) -> tuple[Node, dict[str, str]]:
    """Read the file of ``space.model.custom``, if any, and make sure that it has the network.

    A node that already holds its ``source``, as in the ``space.yaml`` of a run, is left unchanged:
    its code does not run before a network is built.

    Args:
        root: The top level of a space.
        space: Its file; a path in an override is relative to this file's folder.

    Returns:
        The top level with that text, and a mapping from the text to its file's name.

    Raises:
        SpaceError: On a file that cannot be read or fails, and on a name or argument it lacks.
    """
    own: dict[str, str] = {}
    return descend(root, "custom", lambda node: _with_source(node, space, own)), own


def _with_source(node: Node, space: Path, own: dict[str, str]) -> Node:
    assert isinstance(node.value, dict)
    path, held = node.value.get("path"), node.value.get("source")
    # A run's text belongs to the path next to it, not to one from an override.
    if path is None or (held is not None and file_of(held) == file_of(path)):
        return node
    if not isinstance(path.value, str):
        raise path.error("is not the name of a Python file; write one, such as my_models.py")
    file = _folder(path, space) / path.value
    try:
        text = read_text(file, encoding="utf-8-sig", is_own=True)
    except FileNotFoundError:
        what = f"there is no file {file}; the name is relative to this file's folder"
        raise path.error(what) from None
    except (OSError, ValueError) as error:
        raise path.error(f"{file} cannot be read ({error}); name a Python file") from None
    try:
        load_module(path.value, text)
    except UsageError as error:
        raise path.error(str(error)) from error
    for name in words(node.value.get("name")):
        _check_name(node, name, path.value, text)
    own[text] = path.value
    source = Node(
        value=text,
        path=join(node.path, "source"),
        place=path.place,
        key_place=path.key_place,
    )
    return node.with_value(node.value | {"source": source})


def _check_name(node: Node, name: Node, path: str, text: str) -> None:
    assert isinstance(node.value, dict)
    try:
        make = load_callable(path, str(name.value), text)
    except UsageError as error:
        raise name.error(str(error)) from error
    params = node.value.get("params")
    given = params.value if params is not None and isinstance(params.value, dict) else {}
    if given.keys() & {*FORMS}:
        return
    if problem := check_arguments(make, given):
        argument, what = problem
        raise _at(params or node, argument).error(f"{path}: {name.value}: {what}")


def _at(node: Node, key: str) -> Node:
    """Return the node of a key of this mapping, placed at the key; otherwise the node itself."""
    child = node.value.get(key) if isinstance(node.value, dict) else None
    if child is None:
        return node
    return Node(value=None, path=child.path, place=child.key_place, key_place=child.key_place)


def _folder(node: Node, space: Path) -> Path:
    """Return the folder of the file that a node is from, which may be a base of the space."""
    file = file_of(node)
    return Path(file).parent if file != node.place else space.parent
