"""What a dataclass may be built from: its keys, their types and ranges, read off its annotations.

One description serves three readers: ``parse`` builds the dataclass from plain values, the search
space checks every axis against it before a trial runs, and the JSON schema for editors is printed
from it.
"""

import dataclasses
import difflib
import functools
import re
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tuner.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """The range of a number, as an annotation: ``lr: Annotated[float, Bounds(gt=0)]``."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __str__(self) -> str:
        signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        limits = {name: getattr(self, name) for name in signs}
        return " and ".join(f"{signs[k]} {v:g}" for k, v in limits.items() if v is not None)

    def admits(self, value: float) -> bool:
        """Whether ``value`` lies in the range; NaN never does."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
            and value == value
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scalar:
    """One plain value."""

    kind: type
    """``bool``, ``int``, ``float`` or ``str``."""
    bounds: Bounds = Bounds()
    words: tuple[str | int, ...] = ()
    """The words that a ``str``, or the numbers that an ``int``, may be; empty for any."""

    def problem(self, value: object) -> str | None:
        """Say what is wrong with ``value`` and what to write instead, or ``None``."""
        shown = repr(value).lower() if isinstance(value, bool) else repr(value)
        if self.words:
            if type(value) is self.kind and value in self.words:
                return None
            known = [str(word) for word in self.words]
            return f"{shown} is not one of {', '.join(known)}{did_you_mean(value, known)}"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {
            bool: isinstance(value, bool),
            int: is_number and isinstance(value, int),
            float: is_number,
            str: isinstance(value, str),
        }[self.kind]
        if not fits:
            needs = {
                bool: "true or false",
                int: "a whole number",
                float: "a number",
                str: "text; quote it",
            }
            is_whole = isinstance(value, float) and value.is_integer() and self.kind is int
            hint = f"; write {value:.0f}" if is_whole else ""
            return f"{shown} is not {needs[self.kind]}{hint}"
        if is_number and not abs(value) <= sys.float_info.max:  # type: ignore[arg-type]
            return f"{value!r} is not a finite number"
        if is_number and not self.bounds.admits(value):  # type: ignore[arg-type]
            return f"{value!r} is out of range; it must be {self.bounds}"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A mapping with known keys, which becomes the dataclass ``cls``."""

    cls: type
    fields: Mapping[str, "Schema"]
    required: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tagged:
    """One of several records, chosen by name: ``{sgd: {lr: 0.1}}``, or ``sgd`` for its defaults."""

    options: Mapping[str, Record]


@dataclass(frozen=True, kw_only=True, slots=True)
class Open:
    """A name with parameters that another module knows; ``cls(name, params)`` is built from it."""

    cls: type


@dataclass(frozen=True, kw_only=True, slots=True)
class Free:
    """A mapping of any words to plain values; an annotation, too, of such a field."""

    def problem(self, key: object) -> str | None:
        """Say what is wrong with a key and what to write instead, or ``None``."""
        if isinstance(key, str) and key.isidentifier():
            return None
        return "is not a name; write letters, digits and _, as in num_layers"


PLAIN = (bool, int, float, str)

Schema = Scalar | Record | Tagged | Open | Free


@dataclass(frozen=True, kw_only=True, slots=True)
class OneOf:
    """Annotates a union of dataclasses with the name by which each is chosen."""

    options: Mapping[str, type]


def to_plain(value: Any, annotation: Any = None) -> Any:
    """Turn a dataclass into mappings, words and numbers; ``parse`` is the way back."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    if hasattr(value, "to_plain"):
        return value.to_plain()
    hints = _hints_of(type(value))
    plain = {
        field.name: to_plain(getattr(value, field.name), hints[field.name])
        for field in dataclasses.fields(value)
    }
    if get_origin(annotation) is Annotated and isinstance(note := get_args(annotation)[1], OneOf):
        return {tag: plain for tag, cls in note.options.items() if cls is type(value)}
    return plain


@functools.cache
def _hints_of(cls: type) -> dict[str, Any]:
    """Read a dataclass's annotations, which takes longer than all else that is done with them."""
    return get_type_hints(cls, include_extras=True)


@functools.cache
def schema_of(cls: type) -> Record:
    """Describe the dataclass ``cls``.

    Raises:
        TypeError: If a field has an annotation that plain YAML cannot hold.
    """
    hints = _hints_of(cls)
    fields = dataclasses.fields(cls)
    return Record(
        cls=cls,
        fields={field.name: _schema_of_annotation(hints[field.name]) for field in fields},
        required=frozenset(
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ),
    )


def _schema_of_annotation(annotation: Any) -> Schema:
    if get_origin(annotation) is Annotated:
        inner, note = get_args(annotation)
        if isinstance(note, OneOf):
            return Tagged(options={tag: schema_of(cls) for tag, cls in note.options.items()})
        if isinstance(note, Free):
            return note
        return Scalar(kind=inner, bounds=note) if isinstance(note, Bounds) else Open(cls=inner)
    if get_origin(annotation) is Literal:
        words = get_args(annotation)
        return Scalar(kind=type(words[0]), words=words)
    if get_origin(annotation) in (Union, types.UnionType):
        present = [arg for arg in get_args(annotation) if arg is not type(None)]
        if len(present) == 1:
            return _schema_of_annotation(present[0])
    if annotation in (bool, int, float, str):
        return Scalar(kind=annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return schema_of(annotation)
    raise TypeError(f"no schema for the annotation {annotation!r}")


def build(cls: type[T], plain: object, path: str = "") -> T:
    """Build the dataclass ``cls`` from plain values; see ``parse``."""
    return parse(schema_of(cls), plain, path)  # type: ignore[arg-type, no-any-return]


def parse(schema: Schema, value: object, path: str = "") -> Any:
    """Build what ``schema`` describes from plain mappings, words and numbers.

    Args:
        schema: As ``schema_of`` gives it.
        value: Plain data, as YAML or JSON holds it.
        path: Dotted path of ``value``, for messages.

    Raises:
        UsageError: With the dotted path, what is wrong, and how to mend it.
    """
    where = f"{path}: " if path else ""
    match schema:
        case Scalar():
            if problem := schema.problem(value):
                raise UsageError(f"{where}{problem}")
            return float(value) if schema.kind is float else value  # type: ignore[arg-type]
        case Record():
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}{value!r} is not a mapping")
            given = {key: entry for key, entry in value.items() if entry is not None}
            for key in given:
                if key not in schema.fields:
                    raise UsageError(f"{join(path, key)}: {unknown_key(key, schema.fields)}")
            for key in sorted(schema.required - given.keys()):
                raise UsageError(f"{join(path, key)}: is missing")
            parsed = {
                key: parse(schema.fields[key], entry, join(path, key))
                for key, entry in given.items()
            }
            try:
                return schema.cls(**parsed)
            except ValueError as error:
                raise UsageError(f"{where}{error}") from error
        case Tagged():
            tag, params = split_tag(value, path)
            if tag not in schema.options:
                raise UsageError(f"{where}{unknown_key(tag, schema.options)}")
            return parse(schema.options[tag], params, join(path, tag))
        case Open():
            return schema.cls(*split_tag(value, path))
        case Free():
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}{value!r} is not a mapping")
            for key, entry in value.items():
                problem = schema.problem(key)
                if not problem and not isinstance(entry, PLAIN):
                    problem = f"{entry!r} is not a plain value"
                elif not problem:
                    problem = Scalar(kind=type(entry)).problem(entry)
                if problem:
                    raise UsageError(f"{join(path, key)}: {problem}")
            return dict(value)


def split_tag(value: object, path: str) -> tuple[str, object]:
    """Take ``{name: params}``, or a bare ``name``, apart."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping) and len(value) == 1:
        ((tag, params),) = value.items()
        return tag, {} if params is None else params
    raise UsageError(
        f"{path}: {value!r} is not one name with its parameters, as in {{name: {{...}}}}"
    )


def join(path: str, key: object) -> str:
    """Return the dotted path of ``key`` below ``path``."""
    return f"{path}.{key}" if path else str(key)


def unknown_key(key: object, known: Iterable[str]) -> str:
    """Say that ``key`` is unknown, with the nearest known one or the whole list."""
    hint = did_you_mean(key, known)
    return f"unknown key{hint}" if hint else f"unknown key; known are {', '.join(sorted(known))}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word nearest to ``word``, or nothing."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def parse_duration(text: str) -> float:
    """Return a time such as ``90s``, ``30m``, ``2h`` or ``1h30m`` in seconds.

    Raises:
        UsageError: If it is no such time, or nothing.
    """
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    days, hours, minutes, seconds = (int(n or 0) for n in found.groups()) if found else [0] * 4
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise UsageError(f"'{text}' is not a time above 0; write 90s, 30m, 2h or 1h30m")
    return float(total)
