"""``objectives:`` of a space: the metric, followed by costs of the network."""

from dataclasses import dataclass
from typing import Any, get_args

from tuner.config import LARGEST_BATCH, Cost, CostObjective, Metric
from tuner.errors import SpaceError
from tuner.schema import Bounds, Scalar
from tuner.space.editor import describe, mapping
from tuner.space.tree import Mistakes, Node, to_plain

METRICS: tuple[Metric, ...] = get_args(Metric)
COSTS: tuple[Cost, ...] = get_args(Cost)
EXAMPLE = "[accuracy, {latency_ms: 1}]"
_METRIC = Scalar(kind=str, choices=METRICS)
_COST = Scalar(kind=str, choices=COSTS)
_BATCH = Scalar(kind=int, bounds=Bounds(ge=1, le=LARGEST_BATCH))


@dataclass(frozen=True, kw_only=True, slots=True)
class Objectives:
    """The objectives of a search."""

    metric: Metric
    costs: tuple[CostObjective, ...]


def read_objectives(node: Node) -> Objectives:
    """Read the list: a metric first, then costs.

    Raises:
        SpaceError: With every mistake, one a line.
    """
    if not isinstance(node.value, tuple):
        raise node.error(f"is not a list; write {EXAMPLE}")
    if not node.value:
        raise node.error(f"there is no objective; write {EXAMPLE}")
    first, *others = node.value
    costs: list[CostObjective] = []
    with Mistakes() as mistakes:
        with mistakes.collected():
            _check_metric(first)
        for child in others:
            with mistakes.collected():
                cost = _read_cost(child)
                if any(cost.cost == one.cost for one in costs):
                    raise child.error(f"{cost.cost} is listed twice; keep one")
                costs.append(cost)
    metric: Any = first.value
    return Objectives(metric=metric, costs=tuple(costs))


def _check_metric(node: Node) -> None:
    names = list(node.value) if isinstance(node.value, dict) else [node.value]
    if any(name in COSTS for name in names):
        first = f"the first objective is a metric; begin with one of {', '.join(METRICS)}"
        raise node.error(f"is a cost, and {first}")
    if isinstance(node.value, dict | tuple):
        raise node.error(f"is not a metric's name; begin with one of {', '.join(METRICS)}")
    if problem := _METRIC.problem(node.value):
        raise node.error(f"{problem}; the first objective is a metric")


def _read_cost(node: Node) -> CostObjective:
    if isinstance(node.value, tuple):
        raise node.error(f"a list is not an objective; write one of {', '.join(COSTS)}")
    name: object = node.value
    number: Node | None = None
    if isinstance(node.value, dict):
        if len(node.value) != 1:
            raise node.error("is not one objective; write each as an entry of its own")
        ((name, number),) = node.value.items()
    if name in METRICS:
        raise node.error(
            f"{name} is a second metric; a search has one, and costs: {', '.join(COSTS)}"
        )
    if problem := _COST.problem(name):
        raise _where(node, name, problem)
    cost = next(one for one in COSTS if one == name)
    if number is None:
        return CostObjective(cost=cost)
    if cost != "latency_ms":
        what = f"{name} takes no number; write {name}"
        limit = ", and a limit as constraints: {parameters: 5000000}"
        raise _where(node, name, what + (limit if cost == "parameters" else ""))
    meaning = "the number is the images at a time, 1 where it is left out"
    if problem := _BATCH.problem(to_plain(number)):
        raise number.error(f"{problem}; {meaning}")
    assert isinstance(number.value, int)
    return CostObjective(cost=cost, batch=number.value)


def _where(node: Node, key: object, what: str) -> SpaceError:
    return node.key_error(str(key), what) if isinstance(node.value, dict) else node.error(what)


def describe_objectives() -> dict[str, Any]:
    """Return the JSON Schema of the list."""
    metric, cost, batch = (describe(one, searched=False) for one in (_METRIC, _COST, _BATCH))
    latency = mapping({"latency_ms": batch}, minProperties=1)
    return {
        "type": "array",
        "minItems": 1,
        "prefixItems": [metric],
        "items": {"anyOf": [cost, latency]},
    }
