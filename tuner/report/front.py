"""The front of a multi-objective search: what a gain in one objective costs in another."""

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.run.run import Run, on_front
from tuner.run.trial import TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontTrial:
    """A trial that no other trial beats in one objective without losing in another."""

    trial: int
    family: str
    value: float
    """Its value of the metric."""
    costs: dict[str, float]
    """Costs by name, in the order of the objectives."""


def front_of(run: Run, ranked: Sequence[TrialRecord]) -> list[FrontTrial]:
    """Return the front of a run, the best by the metric first; empty without costs.

    Args:
        run: The run.
        ranked: Its trials, as returned by ``Run.ranked``.
    """
    metric, costs = run.record.search.metric, run.record.search.costs
    found = []
    for trial in on_front(ranked):
        value = trial.best.value(metric) if trial.best else None
        known = {cost.cost: trial.status.cost(cost) for cost in costs}
        assert value is not None, "it lies on the front"
        found.append(
            FrontTrial(
                trial=trial.number,
                family=trial.config.model.family,
                value=value,
                costs={name: amount for name, amount in known.items() if amount is not None},
            )
        )
    return found
