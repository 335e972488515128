"""Turns nodes into axes, and checks every value, range and name against the schema."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from tuner.errors import UsageError
from tuner.schema import (
    PLAIN,
    Bounds,
    FreeForm,
    Record,
    Scalar,
    Schema,
    Tagged,
    parse,
    unknown_key,
)
from tuner.space.axes import (
    Axis,
    Branch,
    Choice,
    Fixed,
    Group,
    Plain,
    RandomTrial,
    Range,
    exact,
    remainder,
    to_yaml,
)
from tuner.space.tree import FORMS, Mistakes, Node

MODIFIERS = ("log", "step")
MAX_STEPS = 10**9
NUM_DRAWS = 64
"""Number of draws; if none of them is valid, a record is considered impossible."""


def read(node: Node, schema: Schema, *, searched: bool = True) -> Axis:
    """Read a node as the axes that ``schema`` describes.

    Args:
        node: The node to read.
        schema: What the node may contain.
        searched: Whether axes are allowed. If not, the values are fixed, and may be incomplete.

    Raises:
        SpaceError: With every mistake, one a line.
    """
    if searched and isinstance(node.value, tuple) and not isinstance(schema, Record | FreeForm):
        raise node.error("a list is not a plain value; to choose from it, write {choice: [...]}")
    match schema:
        case Record():
            return read_record(node, schema, searched=searched)
        case Tagged():
            options = {}
            with Mistakes() as mistakes:
                for name, params in _names(node, schema, searched, mistakes).items():
                    with mistakes.collected():
                        options[name] = read_record(params, schema.options[name], searched=searched)
            return Branch(name=_name(node), options=options)
        case Scalar():
            return _read_scalar(node, schema, searched)
        case FreeForm():
            return _read_free(node, schema, searched)
        case _:
            raise TypeError(f"{node.path}: there is no axis for a {type(schema).__name__}")


def read_record(node: Node, schema: Record, *, searched: bool = True) -> Group:
    """Read the axes of a record; see ``read``."""
    if not isinstance(node.value, dict):
        raise node.error(
            f"{_not(node.value, 'a mapping')}; write keys such as {next(iter(schema.fields))}:"
        )
    entries: dict[str, Axis] = {}
    with Mistakes() as mistakes:
        for key, child in node.value.items():
            if key not in schema.fields:
                mistakes.add(node.key_error(key, unknown_key(key, schema.fields)))
                continue
            with mistakes.collected():
                entries[key] = read(child, schema.fields[key], searched=searched)
        # An unknown key may be the missing one, misspelt.
        if searched and node.value.keys() <= schema.fields.keys():
            for key in sorted(schema.required - node.value.keys()):
                mistakes.add(node.error(f"'{key}' is missing; add it"))
    group = Group(entries=entries)
    if searched:
        check_possible(node, lambda trial: parse(schema, group.sample(trial)), {})
    return group


def _read_free(node: Node, schema: FreeForm, searched: bool) -> Group:
    """Read a mapping whose entries have the kind in which their values are written."""
    if not isinstance(node.value, dict):
        raise node.error(f"{_not(node.value, 'a mapping')}; write keys with values or axes")
    entries: dict[str, Axis] = {}
    with Mistakes() as mistakes:
        for key, child in node.value.items():
            with mistakes.collected():
                if problem := schema.problem(key):
                    raise node.key_error(key, problem)
                if key in FORMS:
                    what = "an axis in place of a whole mapping; write one for each of its keys"
                    raise node.key_error(key, what)
                if isinstance(child.value, tuple):
                    what = "a list is not a plain value; to choose from it, write {choice: [...]}"
                    raise child.error(what)
                entries[key] = _read_scalar(child, _kind_as_written(child), searched)
    return Group(entries=entries)


def _kind_as_written(node: Node) -> Scalar:
    """Return the kind of a plain value, or of the numbers or words of an axis."""
    values: tuple[Any, ...] = (node.value,)
    if isinstance(node.value, dict):
        if "choice" not in node.value:
            return Scalar(kind=float if "float" in node.value else int)
        source = node.value["choice"].value
        values = tuple(item.value for item in source) if isinstance(source, tuple) else ()
    # Text such as 1e-4 was meant as a number, so it is refused as one.
    kinds = [float if isinstance(v, str) and _number(v, float) else type(v) for v in values]
    if float in kinds and {*kinds} <= {int, float}:
        return Scalar(kind=float)
    return Scalar(kind=next((kind for kind in kinds if kind in PLAIN), str))


def check_possible(
    node: Node, build: Callable[[RandomTrial], object], params: Mapping[str, Plain]
) -> None:
    """Raise the error of ``build`` if every draw raises one; ``params`` are not drawn."""
    trial = RandomTrial(params=dict(params))
    for _ in range(NUM_DRAWS):
        try:
            build(trial)
        except UsageError as error:
            problem = str(error)
        else:
            return
    raise node.error(problem)


def _names(node: Node, schema: Tagged, searched: bool, mistakes: Mistakes) -> dict[str, Node]:
    """Return the known names to choose from, each with the node of its parameters."""
    known = Scalar(kind=str, choices=tuple(schema.options))
    if not isinstance(node.value, dict):
        return {str(_value(node, known)): node.with_value({})}
    source = node
    if node.value.keys() & {*FORMS}:
        if (form := _form(node, searched)) != "choice":
            raise node.key_error(form, "a name is chosen here; write {choice: [name, name]}")
        source = node.value[form]
        if isinstance(source.value, tuple):
            return {str(name): source.with_value({}) for name in _distinct(source, known)}
    if not isinstance(source.value, dict) or not source.value:
        raise source.error(
            f"no list or mapping of names; write some of {', '.join(schema.options)}"
        )
    for name in source.value:
        if name not in schema.options:
            mistakes.add(source.key_error(name, unknown_key(name, schema.options)))
    if source is node and len(source.value) > 1:
        first, second, *_ = source.value
        what = f"a second name next to '{first}'; to choose between them, put them under choice:"
        raise node.key_error(second, what)
    return {
        name: params.with_value({}) if params.value is None else params
        for name, params in source.value.items()
        if name in schema.options
    }


def _read_scalar(node: Node, schema: Scalar, searched: bool) -> Axis:
    if not isinstance(node.value, dict):
        return Fixed(value=_value(node, schema))
    form = _form(node, searched)
    if form != "choice":
        return _read_range(node, form, schema)
    source = node.value[form]
    if not isinstance(source.value, tuple):
        raise source.error(f"{_not(source.value, 'a list')}; write {{choice: [a, b]}}")
    values = _distinct(source, schema)
    return Choice(name=_name(node), values=values) if len(values) > 1 else Fixed(value=values[0])


def _form(node: Node, searched: bool) -> str:
    """Return the form of axis that a mapping describes."""
    assert isinstance(node.value, dict)
    forms = [form for form in FORMS if form in node.value]
    others = [key for key in node.value if key not in forms]
    if not searched:
        raise node.error("a mapping in place of a plain value; write the value")
    if len(forms) > 1:
        raise node.key_error(forms[1], f"cannot be combined with {forms[0]}:; keep one of the two")
    if not forms:
        if unknown := [key for key in others if key not in MODIFIERS]:
            raise node.key_error(unknown[0], unknown_key(unknown[0], FORMS))
        raise node.error(f"a mapping without an axis; add one of {', '.join(FORMS)}")
    for key in others:
        if forms == ["choice"]:
            raise node.key_error(key, "a choice takes no other keys; remove it")
        if key not in MODIFIERS:
            raise node.key_error(key, unknown_key(key, MODIFIERS))
    return forms[0]


def _distinct(source: Node, schema: Scalar) -> tuple[Plain, ...]:
    assert isinstance(source.value, tuple)
    values: list[Plain] = []
    with Mistakes() as mistakes:
        for item in source.value:
            with mistakes.collected():
                if (value := _value(item, schema)) in values:
                    raise item.error(f"{to_yaml(value)} is listed twice; remove one")
                values.append(value)
    if not values:
        raise source.error("the choice is empty; write the values to choose from")
    return tuple(values)


def _read_range(node: Node, form: str, schema: Scalar) -> Range:
    assert isinstance(node.value, dict)
    ends, whole = node.value[form], form == "int"
    if schema.choices or schema.kind not in (int, float):
        words = schema.choices or (("true", "false") if schema.kind is bool else ("a", "b"))
        example = ", ".join(map(str, words[:2]))
        raise node.key_error(form, f"a range is not possible here; write {{choice: [{example}]}}")
    if schema.kind is int and not whole:
        raise node.key_error(form, "only whole numbers are possible here; write {int: [low, high]}")
    if not isinstance(ends.value, tuple) or len(ends.value) != 2:
        raise ends.error(f"a range has two ends; write {{{form}: [low, high]}}")
    number = Scalar(kind=int if whole else float, bounds=schema.bounds)
    values = []
    with Mistakes() as mistakes:
        for end in ends.value:
            with mistakes.collected():
                values.append(_value(end, number))
    low, high = values
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if low > high:
        raise ends.error(f"the range is empty, {to_yaml(low)} is above {to_yaml(high)}; swap them")
    if low == high:
        raise ends.error(f"the range holds one number; write it plainly: {to_yaml(low)}")
    log = "log" in node.value and bool(_value(node.value["log"], Scalar(kind=bool)))
    if log and low <= 0:
        raise ends.value[0].error(
            f"log needs low above 0, got {to_yaml(low)}; raise low or drop log"
        )
    step = None
    if "step" in node.value:
        step = _read_step(node.value["step"], low, high, number.kind)
        if log:
            raise node.key_error("step", "log and step do not go together; drop one")
    return Range(
        name=_name(node),
        low=low,
        high=high,
        whole=whole,
        log=log,
        step=step,
        valid=schema.bounds,
    )


def _read_step(node: Node, low: float, high: float, kind: type) -> float:
    step = _value(node, Scalar(kind=kind, bounds=Bounds(gt=0)))
    assert not isinstance(step, str)
    if exact(step) > exact(high) - exact(low):
        raise node.error(f"{to_yaml(step)} is larger than the whole range; lower it")
    if exact(step) * MAX_STEPS < exact(high) - exact(low):
        raise node.error(
            f"{to_yaml(step)} makes more than {MAX_STEPS} steps; raise it or drop step"
        )
    if rest := remainder(low, high, step):
        fit = to_yaml(kind(exact(high) - rest))
        what = f"steps of {to_yaml(step)} from {to_yaml(low)} do not end at {to_yaml(high)}"
        raise node.error(f"{what}; write [{to_yaml(low)}, {fit}]")
    return step


def _value(node: Node, schema: Scalar) -> Plain:
    value = node.value
    if value is None or isinstance(value, dict | tuple):
        raise node.error(f"{_not(value, 'a plain value')}; write one")
    if isinstance(value, str) and (number := _number(value, schema.kind)):
        raise node.error(f"{value!r} is text, not a number. Write {number}.")
    if problem := schema.problem(value):
        raise node.error(problem)
    return float(value) if schema.kind is float else value


def _number(text: str, kind: type) -> str | None:
    """Return the number that ``text`` was meant to be, as YAML reads it."""
    if kind not in (int, float):
        return None
    mantissa, e, exponent = text.lower().partition("e")
    try:
        number, power = float(text), int(exponent or 0)
    except ValueError:
        return None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        return None
    if kind is int or not (e or "." in text):
        return str(int(number))
    return f"{float(mantissa)}e{power:+d}" if e else str(number)


def _not(value: object, needed: str) -> str:
    """Return a message that ``value`` is something other than ``needed``."""
    if value is None:
        return "the value is missing"
    kinds: dict[type, str] = {tuple: "a list", dict: "a mapping"}
    return f"{kinds.get(type(value)) or repr(value)} is not {needed}"


def _name(node: Node) -> str:
    return node.path.removeprefix("space.")
