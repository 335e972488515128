"""YAML text as a tree whose every node knows where it was written.

PyYAML would silently turn ``on`` into true and ``1:30`` into 90, and lose the line numbers. Here
the composed nodes are read one by one, and values that would be silently misread are refused.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import yaml

from tuner.errors import SpaceError
from tuner.schema import join

FORMS = ("int", "float", "choice")
"""The keys that make a mapping an axis; they are left out of the dotted paths below it."""
MAX_NODES = 10_000
_PREFIX = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+.0-9_eE]+")


class Mistakes:
    """Collects the mistakes of a space, to report them all in one pass.

    As a context manager, it raises on exit one ``SpaceError`` with a line for each mistake that was
    collected, in the order of their places.

    Args:
        most: Maximum number of mistakes to report; ``None`` for all.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, SpaceError):
            self.add(error)
        elif error is not None:
            return
        if self._lines:
            lines = sorted(dict.fromkeys(self._lines), key=_position)
            if self._most is not None and len(lines) > self._most:
                lines[self._most :] = [f"and {len(lines) - self._most} more mistakes"]
            raise SpaceError("\n".join(lines)) from error

    def add(self, error: SpaceError) -> None:
        """Collect a mistake."""
        self._lines += str(error).splitlines()

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Collect the mistake that the block raises, and continue after the block."""
        try:
            yield
        except SpaceError as error:
            self.add(error)


def _position(line: str) -> tuple[str, int, int]:
    """Return the file, line and column at the start of a message."""
    found = re.match(r"(.*?):([0-9]+):([0-9]+): ", line)
    return (found[1], int(found[2]), int(found[3])) if found else (line, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A value of the file, with its place for messages."""

    value: "bool | int | float | str | tuple[Node, ...] | dict[str, Node] | None"
    path: str
    """Dotted, without the keys of an axis: ``space.optimizer.sgd.lr``."""
    place: str
    """``file:line:column``, or the override."""
    key_place: str
    """Place of the key before it."""

    def error(self, what: str) -> SpaceError:
        """Return an error that says ``what`` is wrong with this value."""
        return _error(self.place, self.path, what)

    def key_error(self, key: str, what: str) -> SpaceError:
        """Return an error that says ``what`` is wrong with a key of this mapping."""
        assert isinstance(self.value, dict)
        return _error(self.value[key].key_place, join(self.path, key), what)

    def with_value(self, value: "dict[str, Node]") -> "Node":
        """Return a node with another value at the same place."""
        return dataclasses.replace(self, value=value)


def file_of(node: Node) -> str:
    """Return the file, or the override, that a node is from."""
    file, *place = node.place.rsplit(":", 2)
    is_in_file = len(place) == 2 and all(number.isdigit() for number in place)
    return file if is_in_file else node.place


def compose(text: str, path: str, place: Callable[[yaml.Mark | None], str]) -> Node | None:
    """Read a YAML text; ``None`` if it is empty.

    Args:
        text: YAML.
        path: Dotted path of the text's value.
        place: Returns the place of a mark in it, as in ``Node.place``.

    Raises:
        SpaceError: If it is not YAML, or would be read as something else than it seems.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if root is None else _Reader(place).read(root, path)
    except yaml.MarkedYAMLError as error:
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise _syntax_error(place(error.problem_mark or error.context_mark), what) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        mark = yaml.Mark("", 0, line, column, None, 0)
        raise _syntax_error(place(mark), f"character #x{error.character:02x}") from None
    except RecursionError:
        raise _syntax_error(place(None), "nested too deeply") from None
    except (ValueError, OverflowError) as error:
        what = f"an escape or a number that is none ({error})"
        raise _syntax_error(place(None), what) from None


def dump(node: Node) -> str:
    """Write a tree as YAML that ``compose`` reads back."""
    return yaml.dump(to_plain(node), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes an axis on one line and a text of several lines as a block, as one would by hand."""

    def represent_text(self, text: str) -> yaml.Node:
        return self.represent_scalar(_PREFIX + "str", text, style="|" if "\n" in text else None)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        nested = any(isinstance(item, dict) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=not nested)

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        nested = any(
            isinstance(child, dict) or (isinstance(child, str) and "\n" in child)
            for child in mapping.values()
        )
        return super().represent_mapping(tag, mapping, flow_style=not nested)


_Dumper.add_representer(str, _Dumper.represent_text)


def to_plain(node: Node) -> Any:
    """Return the value as plain mappings, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: to_plain(child) for key, child in node.value.items()}
    if isinstance(node.value, tuple):
        return [to_plain(child) for child in node.value]
    return node.value


def _syntax_error(place: str, what: str) -> SpaceError:
    what = " ".join(what.split())
    return SpaceError(f"{place}: not YAML: {what}; check brackets, colons, quotes and indentation")


class _Reader:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, place: Callable[[yaml.Mark | None], str]) -> None:
        self.place = place
        self.open: list[yaml.Node] = []
        self.num_nodes = 0

    def read(self, node: yaml.Node, path: str, key_place: str | None = None) -> Node:
        place = self.place(node.start_mark)
        self.num_nodes += 1
        if node in self.open:
            raise _error(place, path, "the alias contains itself; write the values out")
        if self.num_nodes > MAX_NODES + 1:
            # Reported already; aliases of aliases would take forever.
            return Node(value=None, path=path, place=place, key_place=place)
        if self.num_nodes > MAX_NODES:
            raise _error(place, path, f"more than {MAX_NODES} values; use fewer aliases")
        self.open.append(node)
        try:
            value = self.read_value(node, path, place)
        finally:
            self.open.pop()
        key_place = key_place or place
        # An empty value has no visible place.
        place = key_place if value is None else place
        return Node(value=value, path=path, place=place, key_place=key_place)

    def read_value(self, node: yaml.Node, path: str, place: str) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
            return self.read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
            # The entries of an axis have the path of the axis.
            is_indexed = path in ("baseline", "objectives")
            paths = [f"{path}[{i}]" if is_indexed else path for i in range(len(node.value))]
            entries = []
            with Mistakes() as mistakes:
                for child, child_path in zip(node.value, paths, strict=True):
                    with mistakes.collected():
                        entries.append(self.read(child, child_path))
            return tuple(entries)
        try:
            return _scalar(node)
        except ValueError as error:
            raise _error(place, path, str(error)) from None

    def read_mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Node]:
        children: dict[str, Node] = {}
        lines: dict[str, int] = {}
        with Mistakes() as mistakes:
            for key_node, child in node.value:
                with mistakes.collected():
                    key = self.read_key(key_node, path, lines)
                    lines[key] = key_node.start_mark.line + 1
                    place = self.place(key_node.start_mark)
                    children[key] = self.read(child, below(path, key), place)
        return children

    def read_key(self, node: yaml.Node, path: str, lines: dict[str, int]) -> str:
        place, key = self.place(node.start_mark), node.value
        if node.tag == _PREFIX + "merge":
            raise _error(place, path, "'<<' is not supported; use extends, or write it out")
        if node.tag == _PREFIX + "bool":
            raise _error(place, path, f"the key '{key}' is read as a truth value; quote it")
        if not isinstance(node, yaml.ScalarNode) or node.tag != _PREFIX + "str":
            raise _error(place, path, "a key is not a word; write 'name: value'")
        if key in lines:
            what = f"duplicate key; it is on line {lines[key]} already; keep one"
            raise _error(place, join(path, key), what)
        return str(key)


def _scalar(node: yaml.Node) -> Any:
    """Read a plain value; raises ValueError if YAML reads it differently than a person would."""
    text, tag = node.value, node.tag.removeprefix(_PREFIX)
    if not isinstance(node, yaml.ScalarNode):
        tag = ""
    if tag == "str":
        # JSON writes a character beyond 16 bits as two halves.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    if tag == "null":
        return None
    if tag == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if tag == "bool":
        word = "true" if text.lower() in ("yes", "on") else "false"
        raise ValueError(f"'{text}' is read as {word} by YAML; write {word}, or quote it: '{text}'")
    if tag == "int" and _INT.fullmatch(text):
        digits = text.replace("_", "")
        if len(digits) > 17 or abs(int(digits)) > 2**53:
            raise ValueError(f"{text} is too large a number; write one up to 2**53")
        return int(digits)
    if tag in ("int", "float") and ":" in text:
        raise ValueError(f"'{text}' is read in base 60 by YAML; write a plain number, or quote it")
    if tag == "int":
        raise ValueError(f"'{text}' is not read as a decimal number by YAML; write it plainly")
    if tag == "float" and _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if math.isfinite(number):
            return number
    if tag == "float":
        raise ValueError(f"'{text}' is not finite; write a finite number")
    if tag == "timestamp":
        raise ValueError(f"'{text}' is read as a date by YAML; quote it")
    raise ValueError(
        f"the tag {node.tag.replace(_PREFIX, '!!')} is not allowed; write plain values"
    )


def below(path: str, key: str) -> str:
    """Return the dotted path of ``key`` below ``path``, without the keys of an axis."""
    return path if key in FORMS else join(path, key)


def _error(place: str, path: str, what: str) -> SpaceError:
    """Return the error for a path; if the place is an override of that path, name it only once."""
    named = re.sub(rf"\.({'|'.join(FORMS)})\b", "", place).startswith(f"{path}=")
    message = f"{place}: {what}" if named or not path else f"{place}: {path}: {what}"
    return SpaceError(message.replace("\n", "\\n"))
