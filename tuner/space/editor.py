"""The schema of a space as JSON Schema, with which editors complete and check what you type."""

import dataclasses
import inspect
from typing import Any

from tuner.schema import PLAIN, FreeForm, Record, Scalar, Schema, Tagged

Json = dict[str, Any]


def describe(schema: Schema, *, searched: bool) -> Json:
    """Return the JSON Schema of a value or, if ``searched``, of an axis of such values."""
    match schema:
        case Record():
            fields = {
                key: describe(field, searched=searched) for key, field in schema.fields.items()
            }
            known = dataclasses.is_dataclass(schema.cls) and schema.cls.__doc__
            return mapping(fields) | ({"description": inspect.cleandoc(known)} if known else {})
        case Tagged():
            return _describe_tagged(schema, searched)
        case Scalar():
            plain = _describe_plain(schema)
            return {"anyOf": [plain, *_axes(schema, plain)]} if searched else plain
        case FreeForm():
            kinds = [describe(Scalar(kind=kind), searched=searched) for kind in PLAIN]
            return {"type": "object", "additionalProperties": {"anyOf": kinds}}
        case _:
            raise TypeError(f"no axis can stand for a {type(schema).__name__}")


def mapping(properties: Json, **rules: Any) -> Json:
    """Return the JSON Schema of a mapping that has only these keys."""
    return {"type": "object", "properties": properties, "additionalProperties": False, **rules}


def _describe_tagged(schema: Tagged, searched: bool) -> Json:
    names = {"enum": list(schema.options)}
    options = {
        name: describe(record, searched=searched) | {"type": ["object", "null"]}
        for name, record in schema.options.items()
    }
    forms = [names, mapping(options, minProperties=1, maxProperties=1)]
    if searched:
        branches = {"anyOf": [_several(names), mapping(options, minProperties=1)]}
        forms.append(mapping({"choice": branches}, required=["choice"]))
    return {"anyOf": forms}


def _describe_plain(schema: Scalar) -> Json:
    if schema.choices:
        return {"enum": list(schema.choices)}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    limits = {name: getattr(schema.bounds, bound) for bound, name in names.items()}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return {"type": kinds[schema.kind], **given}


def _axes(schema: Scalar, plain: Json) -> list[Json]:
    axes = [mapping({"choice": _several(plain)}, required=["choice"])]
    if schema.choices or schema.kind not in (int, float):
        return axes
    for form in ("int", "float") if schema.kind is float else ("int",):
        number = {"type": "integer" if form == "int" else "number"}
        ends = {"type": "array", "items": plain | number, "minItems": 2, "maxItems": 2}
        modifiers = {"log": {"type": "boolean"}, "step": number | {"exclusiveMinimum": 0}}
        axes.append(mapping({form: ends, **modifiers}, required=[form]))
    return axes


def _several(items: Json) -> Json:
    return {"type": "array", "items": items, "minItems": 1, "uniqueItems": True}
