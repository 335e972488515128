"""Schemas of dataclasses: their keys, types and ranges, read from their annotations.

One description serves all readers. ``parse`` builds the dataclass from plain values and
``to_plain`` converts it back, and ``from_json`` and ``to_json`` do the same for every record on
disk. The search space checks every axis against it before a trial runs, and prints the JSON schema
for editors from it.
"""

import collections.abc
import dataclasses
import difflib
import functools
import json
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
    is_finite: bool = True
    """Whether NaN and infinities are refused."""

    def __str__(self) -> str:
        signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        limits = {name: getattr(self, name) for name in signs}
        return " and ".join(f"{signs[k]} {v:g}" for k, v in limits.items() if v is not None)

    def admits(self, value: float) -> bool:
        """Whether ``value`` is in the range; NaN never is."""
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
    choices: tuple[str | int, ...] = ()
    """Allowed values of a ``str`` or an ``int``; empty for any."""

    def problem(self, value: object) -> str | None:
        """Return what is wrong with ``value`` and what to write instead, or ``None``."""
        shown = quoted(value).lower() if isinstance(value, bool) else quoted(value)
        if self.choices:
            if type(value) is self.kind and value in self.choices:
                return None
            known = [str(word) for word in self.choices]
            return f"{shown} is not one of {', '.join(known)}{did_you_mean(value, known)}"
        if not _is_a(value, self.kind):
            needs = {
                bool: "true or false",
                int: "a whole number",
                float: "a number",
                str: "text; quote it",
            }
            is_whole = isinstance(value, float) and value.is_integer() and self.kind is int
            hint = f"; write {value:.0f}" if is_whole else ""
            return f"{shown} is not {needs[self.kind]}{hint}"
        if isinstance(value, str):
            return None if _is_text(value) else f"{shown} holds half of a character"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not abs(value) <= sys.float_info.max:
            if isinstance(value, float) and not self.bounds.is_finite:
                return None
            return f"{shown} is not a finite number"
        if not self.bounds.admits(value):
            return f"{shown} is out of range; it must be {self.bounds}"
        if self.kind is int and not -LARGEST_WHOLE <= value <= LARGEST_WHOLE:
            return f"{shown} is out of range; it must fit 64 bits"
        return None


LARGEST_WHOLE = 2**63 - 1
"""Largest integer that tables and column files can hold."""


def _is_a(value: object, kind: type) -> bool:
    """Whether a value is of a kind; an integer is also a number, but a boolean is neither."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _is_text(value: str) -> bool:
    """Whether a text can be written: JSON can contain lone surrogates, which no file can hold."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A mapping with known keys, which becomes the dataclass ``cls``."""

    cls: type
    fields: Mapping[str, "Schema"]
    required: frozenset[str]
    nullable: frozenset[str] = frozenset()
    """Keys whose value may be ``None``; other keys are left out if their value is ``None``."""
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Key -> name of the field, where the two differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tagged:
    """One of several records, chosen by name: ``{sgd: {lr: 0.1}}``, or ``sgd`` for its defaults."""

    options: Mapping[str, Record]


@dataclass(frozen=True, kw_only=True, slots=True)
class Opaque:
    """A name with parameters that another module checks; ``cls(name, params)`` is built from it."""

    cls: type


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeForm:
    """A mapping of any names to plain values; also used as the annotation of such a field."""

    def problem(self, key: object) -> str | None:
        """Return what is wrong with a key and what to write instead, or ``None``."""
        if isinstance(key, str) and key.isidentifier():
            return None
        return "is not a name; write letters, digits and _, as in num_layers"


@dataclass(frozen=True, kw_only=True, slots=True)
class ListOf:
    """A sequence of values of one kind."""

    item: "Schema"
    cls: type
    """``tuple`` or ``list``."""
    length: int | None = None
    """Number of values; ``None`` for any number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MappingOf:
    """A mapping of any strings to values of one kind."""

    value: "Schema"


@dataclass(frozen=True, kw_only=True, slots=True)
class Maybe:
    """A value, or ``None``."""

    schema: "Schema"


@dataclass(frozen=True, kw_only=True, slots=True)
class AnyOf:
    """A value of one of several kinds, the first that fits."""

    options: tuple["Schema", ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Anything:
    """Plain values, nested in any way down to ``MOST_LEVELS``."""


PLAIN = (bool, int, float, str)
MOST_LEVELS = 20
"""Maximum nesting depth of mappings and lists where no schema limits it."""

Schema = (
    Scalar | Record | Tagged | Opaque | FreeForm | ListOf | MappingOf | Maybe | AnyOf | Anything
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OneOf:
    """Annotates a union of dataclasses with the names that select them."""

    options: Mapping[str, type]


@functools.cache
def schema_of(cls: type) -> Record:
    """Describe the dataclass ``cls``.

    The key of a field is its name, or the ``key`` in its metadata.

    Raises:
        TypeError: If a field has an annotation that plain values cannot hold.
    """
    hints = get_type_hints(cls, include_extras=True)
    fields = {field.metadata.get("key", field.name): field for field in dataclasses.fields(cls)}
    schemas = {key: schema_for(hints[field.name]) for key, field in fields.items()}
    return Record(
        cls=cls,
        fields={
            key: schema.schema if isinstance(schema, Maybe) else schema
            for key, schema in schemas.items()
        },
        required=frozenset(
            key
            for key, field in fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ),
        nullable=frozenset(key for key, schema in schemas.items() if isinstance(schema, Maybe)),
        names={key: field.name for key, field in fields.items() if key != field.name},
    )


def schema_for(annotation: Any) -> Schema:
    """Describe the values that an annotation allows.

    Raises:
        TypeError: If plain values cannot hold it.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _schema_of_annotated(*args)
    if origin is Literal:
        return Scalar(kind=type(args[0]), choices=args)
    if origin in (Union, types.UnionType):
        options = tuple(schema_for(arg) for arg in args if arg is not types.NoneType)
        schema = options[0] if len(options) == 1 else AnyOf(options=options)
        return Maybe(schema=schema) if types.NoneType in args else schema
    if origin is list:
        return ListOf(item=schema_for(args[0]), cls=list)
    if origin is tuple:
        length = None if args[-1] is ... else len(args)
        item, *others = (schema_for(arg) for arg in args if arg is not ...)
        if all(other == item for other in others):
            return ListOf(item=item, cls=tuple, length=length)
    if origin in (dict, collections.abc.Mapping) and args[0] is str:
        return MappingOf(value=schema_for(args[1]))
    if annotation in PLAIN:
        return Scalar(kind=annotation)
    if annotation is Any:
        return Anything()
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return schema_of(annotation)
    raise TypeError(f"no schema for the annotation {annotation!r}")


def _schema_of_annotated(inner: Any, note: object) -> Schema:
    match note:
        case OneOf():
            return Tagged(options={tag: schema_of(cls) for tag, cls in note.options.items()})
        case FreeForm():
            return note
        case Bounds():
            return Scalar(kind=inner, bounds=note)
        case _:
            return Opaque(cls=inner)


def to_plain(value: Any) -> Any:
    """Convert dataclasses to mappings, lists, strings and numbers; ``build`` converts them back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _to_plain(schema_of(type(value)), value)
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    return value


def _to_plain(schema: Schema, value: Any) -> Any:
    """Do the same for what ``schema`` describes: a record defines the names of its parts."""
    if value is None:
        return None
    match schema:
        case Record():
            return {
                key: _to_plain(field, getattr(value, schema.names.get(key, key)))
                for key, field in schema.fields.items()
            }
        case Tagged():
            (tag,) = (tag for tag, option in schema.options.items() if option.cls is type(value))
            return {tag: _to_plain(schema.options[tag], value)}
        case Opaque():
            return value.to_plain()
        case Maybe():
            return _to_plain(schema.schema, value)
        case ListOf():
            return [_to_plain(schema.item, entry) for entry in value]
        case MappingOf():
            return {key: _to_plain(schema.value, entry) for key, entry in value.items()}
        case _:
            return to_plain(value)


def build(cls: type[T], plain: object, path: str = "", *, is_strict: bool = True) -> T:
    """Build the dataclass ``cls``, or another annotated type, from plain values.

    See ``parse``.
    """
    return parse(schema_for(cls), plain, path, is_strict=is_strict)  # type: ignore[no-any-return]


def from_json(cls: type[T], text: str | bytes, *, is_strict: bool = True) -> T:
    """Build the dataclass ``cls``, or another annotated type, from JSON text.

    Args:
        cls: The type to build.
        text: As ``to_json`` writes it.
        is_strict: As for ``parse``.

    Raises:
        UsageError: If it is no such text, with the dotted path and what is wrong.
    """
    return build(cls, parse_json(text), is_strict=is_strict)


def parse_json(text: str | bytes) -> object:
    """Read JSON as plain values, which ``build`` must check.

    Raises:
        UsageError: If it is none, is nested too deep, or has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise UsageError("brackets are nested too deep") from None
    except ValueError as error:
        raise UsageError(f"not JSON: {error}") from None


def to_json(
    value: Any, *, indent: int | None = None, sort_keys: bool = False, allow_nan: bool = False
) -> str:
    """Return dataclasses, and containers of them, as JSON.

    Raises:
        ValueError: If a number is NaN or infinite, for which JSON has no word, unless allowed.
    """
    plain = to_plain(value)
    return json.dumps(plain, indent=indent, sort_keys=sort_keys, allow_nan=allow_nan)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(key)} appears twice")
    return found


def parse(schema: Schema, value: object, path: str = "", *, is_strict: bool = True) -> Any:
    """Build what ``schema`` describes from plain mappings, lists, strings and numbers.

    Args:
        schema: As ``schema_of`` returns it.
        value: Plain data, as read from YAML or JSON.
        path: Dotted path of ``value``, for messages.
        is_strict: Whether unknown keys are refused; otherwise they are ignored.

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
            return _parse_record(schema, value, path, is_strict)
        case Tagged():
            tag, params = split_tag(value, path)
            if tag not in schema.options:
                raise UsageError(f"{where}{unknown_key(tag, schema.options)}")
            return parse(schema.options[tag], params, join(path, tag), is_strict=is_strict)
        case Opaque():
            tag, params = split_tag(value, path)
            parse(WORD, tag, path)
            if not isinstance(params, Mapping):
                raise UsageError(f"{join(path, tag)}: {quoted(params)} is not a mapping")
            _check_plain(params, join(path, tag))
            return schema.cls(tag, params)
        case FreeForm():
            return _parse_free(schema, value, path)
        case ListOf():
            if not isinstance(value, list | tuple):
                raise UsageError(f"{where}{quoted(value)} is not a list")
            if schema.length not in (None, len(value)):
                raise UsageError(f"{where}has {len(value)} entries; it must have {schema.length}")
            return schema.cls(
                parse(schema.item, entry, f"{path}[{place}]", is_strict=is_strict)
                for place, entry in enumerate(value)
            )
        case MappingOf():
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}{quoted(value)} is not a mapping")
            return {
                parse(WORD, key, path): parse(
                    schema.value, entry, join(path, key), is_strict=is_strict
                )
                for key, entry in value.items()
            }
        case Maybe():
            if value is None:
                return None
            return parse(schema.schema, value, path, is_strict=is_strict)
        case AnyOf():
            *options, last = schema.options
            for option in options:
                try:
                    return parse(option, value, path, is_strict=is_strict)
                except UsageError:
                    continue
            return parse(last, value, path, is_strict=is_strict)
        case Anything():
            _check_plain(value, path)
            return value


WORD = Scalar(kind=str)


def _parse_record(schema: Record, value: object, path: str, is_strict: bool) -> Any:
    where = f"{path}: " if path else ""
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}{quoted(value)} is not a mapping")
    given = {k: entry for k, entry in value.items() if entry is not None or k in schema.nullable}
    for key in given.keys() - schema.fields.keys():
        if is_strict:
            raise UsageError(f"{join(path, key)}: {unknown_key(key, schema.fields)}")
        del given[key]
    for key in sorted(schema.required - given.keys()):
        raise UsageError(f"{join(path, key)}: is missing")
    parsed = {
        schema.names.get(key, key): entry
        if entry is None
        else parse(schema.fields[key], entry, join(path, key), is_strict=is_strict)
        for key, entry in given.items()
    }
    try:
        return schema.cls(**parsed)
    except ValueError as error:
        raise UsageError(f"{where}{error}") from error


def _parse_free(schema: FreeForm, value: object, path: str) -> dict[str, Any]:
    where = f"{path}: " if path else ""
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}{quoted(value)} is not a mapping")
    for key, entry in value.items():
        problem = schema.problem(key)
        if not problem and not isinstance(entry, PLAIN):
            problem = f"{quoted(entry)} is not a plain value"
        elif not problem:
            problem = Scalar(kind=type(entry)).problem(entry)
        if problem:
            raise UsageError(f"{join(path, key)}: {problem}")
    return dict(value)


def _check_plain(value: object, path: str, level: int = 0) -> None:
    """Make sure that a value is plain, can be written, and is not nested too deeply."""
    where = f"{path}: " if path else ""
    if level > MOST_LEVELS:
        raise UsageError(f"{where}is nested deeper than {MOST_LEVELS} levels")
    match value:
        case Mapping():
            for key, entry in value.items():
                parse(WORD, key, path)
                _check_plain(entry, join(path, key), level + 1)
        case list() | tuple():
            for place, entry in enumerate(value):
                _check_plain(entry, f"{path}[{place}]", level + 1)
        case bool() | int() | float() | str():
            if problem := Scalar(kind=type(value)).problem(value):
                raise UsageError(f"{where}{problem}")
        case None:
            pass
        case _:
            raise UsageError(f"{where}{quoted(value)} is not a plain value")


def split_tag(value: object, path: str) -> tuple[str, object]:
    """Split ``{name: params}``, or a bare ``name``, into name and parameters."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping) and len(value) == 1:
        ((tag, params),) = value.items()
        if isinstance(tag, str):
            return tag, {} if params is None else params
    raise UsageError(
        f"{path}: {quoted(value)} is not one name with its parameters, as in {{name: {{...}}}}"
    )


def join(path: str, key: object) -> str:
    """Return the dotted path of ``key`` below ``path``."""
    word = str(key)[:MOST_QUOTED]
    return f"{path}.{word}" if path else word


MOST_QUOTED = 200
"""Maximum number of characters of an input that a message quotes."""


def quoted(value: object) -> str:
    """Return the text of a value for messages, cut if it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # A list that contains itself, or an integer of thousands of digits.
        return f"a {type(value).__name__}"
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}..."


def plural(number: float, noun: str) -> str:
    """Return a number with its noun, as in ``1 image``, ``2,000 images`` or ``0.5 CPUs``."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}{'' if number == 1 else 's'}"


def unknown_key(key: object, known: Iterable[str]) -> str:
    """Return a message that ``key`` is unknown, with the nearest known one or the whole list."""
    hint = did_you_mean(key, known)
    return f"unknown key{hint}" if hint else f"unknown key; known are {', '.join(sorted(known))}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word nearest to ``word``, or nothing."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def whole_number(text: str) -> int | None:
    """Return the number that a text of digits spells; ``None`` for any other text."""
    try:
        return int(text) if text.isascii() and text.isdecimal() else None
    except ValueError:  # Python converts no text of more than 4,300 digits.
        return None


def parse_duration(text: str) -> float:
    """Return a time such as ``90s``, ``30m``, ``2h`` or ``1h30m`` in seconds.

    Raises:
        UsageError: If it is no such time, or nothing.
    """
    found = re.fullmatch("".join(f"(?:([0-9]{{1,9}}){unit})?" for unit in "dhms"), text.strip())
    days, hours, minutes, seconds = (int(n or 0) for n in found.groups()) if found else [0] * 4
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise UsageError(f"'{text}' is not a time above 0; write 90s, 30m, 2h or 1h30m")
    return float(total)
