"""Configurations that are tried first: parameters to pin, and values that the space leaves out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.schema import Record
from tuner.space.axes import Axis, Branch, Choice, Fixed, Group, Plain, RandomTrial, Range, to_yaml
from tuner.space.grammar import read_record
from tuner.space.tree import Node


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A part of a configuration; what it leaves out is sampled."""

    params: Mapping[str, Plain]
    """Parameter name -> value, for those that the space searches."""
    rest: Mapping[str, Any]
    """The values of keys that the space leaves out, as nested mappings."""

    def complete(self, sampled: Mapping[str, Any]) -> dict[str, Any]:
        """Merge ``rest`` over sampled values."""
        return _overlay(sampled, self.rest)


def read_baseline(node: Node, schema: Record, axes: Group) -> Baseline:
    """Read one entry of ``baseline:``.

    A value must lie on its axis or equal the value that the space fixes; otherwise, the study would
    hold a point outside its own space. Keys that the space leaves out may have any value.

    Raises:
        SpaceError: On a value that the schema or the space refuses.
    """
    plain = read_record(node, schema, searched=False).sample(RandomTrial())
    params: dict[str, Plain] = {}
    return Baseline(params=params, rest=_pin(axes, node, plain, params))


def without_misfits(node: Node, axis: Axis) -> Node | None:
    """Return a baseline without the values that the space lacks; ``None`` if nothing is left.

    Args:
        node: The baseline, or a part of it.
        axis: The axis of the space at this place.
    """
    match axis:
        case Group(entries=entries) if isinstance(node.value, dict):
            fitting = {
                key: without_misfits(child, entries[key]) if key in entries else child
                for key, child in node.value.items()
            }
            kept = {key: child for key, child in fitting.items() if child is not None}
            return node.with_value(kept) if kept or not node.value else None
        case Branch(options=options) if isinstance(node.value, dict):
            for tag, child in node.value.items():
                if tag not in options:
                    return None
                inner = without_misfits(child, options[tag])
                return node.with_value({tag: inner or child.with_value({})})
        case Branch(options=options):
            # The grammar refuses values that are not names.
            return node if not isinstance(node.value, str) or node.value in options else None
        case Fixed():
            # The space fixes the same value, or another one.
            return None
        case Range() | Choice():
            is_text = isinstance(axis, Range) and isinstance(node.value, str)
            is_plain = isinstance(node.value, int | float | str) and not is_text
            return node if not is_plain or axis.admits(node.value) else None
    return node


def _pin(axis: Axis, node: Node, plain: Any, params: dict[str, Plain]) -> dict[str, Any]:
    """Collect in ``params`` the values that lie on an axis, and return the rest."""
    children = node.value if isinstance(node.value, dict) else {}
    match axis:
        case Group(entries=entries):
            rest = {key: value for key, value in plain.items() if key not in entries}
            inner = {
                key: _pin(entries[key], children[key], value, params)
                for key, value in plain.items()
                if key in entries
            }
            return rest | {key: values for key, values in inner.items() if values}
        case Branch(options=options):
            ((tag, values),) = plain.items()
            if tag not in options:
                what = f"'{tag}' is not among the space's {', '.join(options)}"
                raise node.error(f"{what}; add it there or change the baseline")
            if len(options) > 1:
                params[axis.name] = tag
            rest = _pin(options[tag], children.get(tag, node), values, params)
            return {tag: rest} if rest else {}
        case Fixed(value=value):
            if plain != value:
                what = f"{to_yaml(plain)} differs from {to_yaml(value)}, which the space fixes"
                raise node.error(f"{what}; make it a choice there or change the baseline")
        case Range() | Choice():
            if not axis.admits(plain):
                what = f"{to_yaml(plain)} is outside the space's axis ({axis.text})"
                raise node.error(f"{what}; widen the axis or change the baseline")
            is_whole = isinstance(axis, Range) and axis.whole
            params[axis.name] = int(plain) if is_whole else plain
    return {}


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        key: _overlay(below[key], value)
        for key, value in above.items()
        if isinstance(value, Mapping) and key in below
    }
    return {**below, **above, **inner}
