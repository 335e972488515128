"""The resources of each trial, and how trials fill the nodes of a cluster."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tuner.config import Resources, ShareConfig, TrialConfig
from tuner.run.trial import threads_of
from tuner.schema import plural

ROUNDING = 1e-6
"""Tolerance for sums of shares: three thirds of a GPU make one."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class TrialResources:
    """The resources of one trial."""

    gpus: float
    cpus: float

    @property
    def threads(self) -> int:
        """See ``threads_of``."""
        return threads_of(self.cpus)

    def __str__(self) -> str:
        gpus = f" and {plural(self.gpus, 'GPU')}" if self.gpus else ""
        return plural(self.cpus, "CPU") + gpus


@dataclass(frozen=True, kw_only=True, slots=True)
class CapacityPlan:
    """The resources of each trial, and how many trials fit at once."""

    default: TrialResources
    count: int
    """Number of trials with default resources that fit at once when the search begins."""
    concurrent: int | None = None
    """The user's limit on the number of trials at once, if any."""
    own: Resources = field(default_factory=Resources)
    """Different resources for some trials."""
    count_parameters: Callable[[TrialConfig], int] = lambda config: 0
    """Returns the number of parameters of a trial's network; 0 where it cannot be built."""

    def to_plain(self) -> dict[str, float]:
        """Return the default resources and the number of trials, for the run's record."""
        return {"cpus": self.default.cpus, "gpus": self.default.gpus, "count": self.count}

    def resources_of(self, config: TrialConfig) -> TrialResources:
        """Return the resources of a trial: those of its family, or more if its network is large."""
        resources = self._of_family(config.model.family)
        if (large := self.own.large) is None:
            return resources
        is_large = self.count_parameters(config) >= large.parameters
        return _larger(resources, large) if is_large else resources

    def all_resources(self) -> Iterator[TrialResources]:
        """Yield all resources that a trial may get."""
        for family in ("", *self.own.by):
            resources = self._of_family(family)
            yield resources
            if self.own.large:
                yield _larger(resources, self.own.large)

    def _of_family(self, family: str) -> TrialResources:
        return resources_from(self.own.by.get(family, ShareConfig()), self.default)

    def __str__(self) -> str:
        others = len(set(self.all_resources())) > 1
        exception = "; some networks have shares of their own" if others else ""
        return f"{plural(self.count, 'trial')} at a time, each on {self.default}{exception}"


def resources_from(own: ShareConfig, default: TrialResources) -> TrialResources:
    """Return the resources that ``own`` sets, and ``default`` for the others."""
    return TrialResources(
        cpus=default.cpus if own.cpus is None else own.cpus,
        gpus=default.gpus if own.gpus is None else own.gpus,
    )


def _larger(resources: TrialResources, least: ShareConfig) -> TrialResources:
    required = resources_from(least, resources)
    return TrialResources(
        cpus=max(resources.cpus, required.cpus), gpus=max(resources.gpus, required.gpus)
    )


class Packing:
    """Fills nodes with trials, each on the first node that has enough resources left."""

    def __init__(self, nodes: Sequence[Mapping[str, float]]) -> None:
        self._cpus = [node.get("CPU", 0.0) for node in nodes]
        # A share of a GPU is always on a single GPU.
        self._gpus = [[1.0] * int(node.get("GPU", 0)) for node in nodes]

    def add(self, resources: TrialResources) -> bool:
        """Place a trial where it fits; return whether it does."""
        for index, gpus in enumerate(self._gpus):
            if self._cpus[index] + ROUNDING < resources.cpus:
                continue
            part = resources.gpus if resources.gpus < 1 else 1.0
            fitting = [number for number, free in enumerate(gpus) if free + ROUNDING >= part]
            needed = math.ceil(resources.gpus)
            if len(fitting) < needed:
                continue
            for number in fitting[:needed]:
                gpus[number] -= part
            self._cpus[index] -= resources.cpus
            return True
        return False

    def add_all(self, resources: TrialResources) -> int:
        """Place as many trials as fit; return their number."""
        count = 0
        while self.add(resources):
            count += 1
        return count
