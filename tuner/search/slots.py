"""What each trial gets of the cluster, and how many trials fit on it, also while it changes."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ray._private.state import state

from tuner.config import Resources, ShareConfig, TrialConfig
from tuner.errors import ClusterError, UsageError
from tuner.search.nodes import (
    Answer,
    alive_resources,
    draining_nodes,
    is_gone,
    table_of_versions,
    versions_here,
)

LOOK_SECONDS = 2.0
"""Between two looks at which nodes there are."""
ROUNDING = 1e-6
"""Three thirds of a GPU are one."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Share:
    """What one trial gets."""

    gpus: float
    cpus: float

    @property
    def threads(self) -> int:
        """Threads of a trial: never more than its CPUs.

        Two trials of one thread each train 1.26 times as many images as one of two threads; two of
        two threads on the same two cores 0.69 times.
        """
        return max(1, int(self.cpus))

    def __str__(self) -> str:
        gpus = f" and {_count(self.gpus, 'GPU')}" if self.gpus else ""
        return _count(self.cpus, "CPU") + gpus


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """What each trial gets, and how many trials fit at once."""

    usual: Share
    count: int
    """Trials of the usual share at once, on the cluster as it was when the search began."""
    concurrent: int | None = None
    """The most trials at once that the user wants."""
    resources: Resources = field(default_factory=Resources)
    """Other shares for some trials."""
    count_parameters: Callable[[TrialConfig], int] | None = None
    """Needed where large networks have a share of their own."""

    def to_plain(self) -> dict[str, float]:
        """Give the usual share and the number of trials, for the run's record."""
        return {"cpus": self.usual.cpus, "gpus": self.usual.gpus, "count": self.count}

    def share(self, config: TrialConfig) -> Share:
        """Give what a trial gets: its family's share, or more if its network is large."""
        share = self._of_family(config.model.family)
        if (large := self.resources.large) is None:
            return share
        assert self.count_parameters is not None
        return _larger(share, large) if self.count_parameters(config) >= large.parameters else share

    def all_shares(self) -> Iterator[Share]:
        """Give every share that a trial may get."""
        for family in ("", *self.resources.by):
            share = self._of_family(family)
            yield share
            if self.resources.large:
                yield _larger(share, self.resources.large)

    def _of_family(self, family: str) -> Share:
        return _own(self.resources.by.get(family, ShareConfig()), self.usual)

    def __str__(self) -> str:
        others = len(set(self.all_shares())) > 1
        exception = "; some networks have shares of their own" if others else ""
        return f"{_count(self.count, 'trial')} at a time, each on {self.usual}{exception}"


def _own(own: ShareConfig, general: Share) -> Share:
    return Share(
        cpus=general.cpus if own.cpus is None else own.cpus,
        gpus=general.gpus if own.gpus is None else own.gpus,
    )


def _larger(share: Share, least: ShareConfig) -> Share:
    least_share = _own(least, share)
    return Share(cpus=max(share.cpus, least_share.cpus), gpus=max(share.gpus, least_share.gpus))


def plan_slots(
    resources: Resources,
    concurrent: int | None = None,
    count_parameters: Callable[[TrialConfig], int] | None = None,
) -> Slots:
    """Decide what each trial gets of the connected cluster.

    Without a word, a trial gets one GPU where there are any, and one CPU.

    Args:
        resources: What was asked for.
        concurrent: The most trials at once; ``None`` for as many as fit.
        count_parameters: Of a configuration's network.

    Raises:
        ClusterError: If no node could ever run a trial, or not so many at once. Nodes that an
            autoscaler may add count too.
    """
    nodes = alive_resources()
    limit = growth_limit()
    has_gpus = any(node.get("GPU", 0) for node in [*nodes, limit or {}])
    slots = Slots(
        usual=_own(resources, Share(cpus=1.0, gpus=float(has_gpus))),
        count=0,
        concurrent=concurrent,
        resources=resources,
        count_parameters=count_parameters,
    )
    for share in slots.all_shares():
        _refuse_impossible(share, nodes, limit)
    count = _most(slots.usual, nodes, limit)
    if concurrent is not None and concurrent > count:
        raise ClusterError(
            f"--concurrent {concurrent}: only {_count(count, 'trial')} of {slots.usual} can "
            f"run at once. Give --concurrent {count} or less, or less to each trial."
        )
    return replace(slots, count=concurrent or count)


def _refuse_impossible(
    share: Share, nodes: list[dict[str, float]], limit: Mapping[str, float] | None
) -> None:
    if share.gpus > 1 and share.gpus != int(share.gpus):
        raise UsageError(
            f"a trial asks for {share.gpus:g} GPUs: above 1, only whole GPUs can be given; change "
            "--gpus-per-trial, or resources: in the space"
        )
    if _most(share, nodes, limit):
        return
    autoscaled = ", and the autoscaler adds none" if limit else ""
    largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
    raise ClusterError(
        f"a trial asks for {share}, but the largest of "
        f"{_count(len(nodes), 'node')} has {_count(largest.get('CPU', 0), 'CPU')} and "
        f"{_count(largest.get('GPU', 0), 'GPU')}{autoscaled}. Lower "
        "--cpus-per-trial or --gpus-per-trial (0 trains on CPUs), or resources: in the space."
    )


def growth_limit() -> Mapping[str, float] | None:
    """Give what a cluster's autoscaler may grow it to, in all; ``None`` if it has none."""
    return state.get_max_resources_from_cluster_config()


def _most(share: Share, nodes: list[dict[str, float]], limit: Mapping[str, float] | None) -> int:
    """Count the trials of one share that fit at once, on nodes to come too."""
    count = Packing(nodes).add_all(share)
    if limit is None:
        return count
    grown = limit.get("CPU", 0) / share.cpus
    if share.gpus:
        grown = min(grown, limit.get("GPU", 0) / share.gpus)
    return max(count, int(grown + ROUNDING))


class Packing:
    """Nodes as trials fill them, each trial on the first node that has its share left."""

    def __init__(self, nodes: list[dict[str, float]]) -> None:
        self._cpus = [node.get("CPU", 0.0) for node in nodes]
        # A share of a GPU lies on one GPU.
        self._gpus = [[1.0] * int(node.get("GPU", 0)) for node in nodes]

    def add(self, share: Share) -> bool:
        """Put a trial where it fits; say whether it does."""
        for index, gpus in enumerate(self._gpus):
            if self._cpus[index] + ROUNDING < share.cpus:
                continue
            part = share.gpus if share.gpus < 1 else 1.0
            fitting = [number for number, free in enumerate(gpus) if free + ROUNDING >= part]
            needed = math.ceil(share.gpus)
            if len(fitting) < needed:
                continue
            for number in fitting[:needed]:
                gpus[number] -= part
            self._cpus[index] -= share.cpus
            return True
        return False

    def add_all(self, share: Share) -> int:
        """Put as many trials as fit; give their number."""
        count = 0
        while self.add(share):
            count += 1
        return count


def fitting(slots: Slots) -> Callable[[Sequence[Share]], bool]:
    """Give what says whether trials of some shares can run at once on the cluster as it is now.

    One trial alone always can: a node for it may be still to come.
    """
    nodes, limit = alive_resources(), growth_limit()
    is_uniform = len(set(slots.all_shares())) == 1 or limit is not None

    def fit(shares: Sequence[Share]) -> bool:
        if len(shares) <= 1:
            return True
        if is_uniform or len(shares) > (slots.concurrent or math.inf):
            return len(shares) <= slots.count
        packing = Packing(nodes)
        return all(packing.add(share) for share in sorted(shares, reverse=True))

    return fit


class Room:
    """Whether the connected cluster can take one more trial, as nodes join and leave."""

    def __init__(self, slots: Slots, tell: Callable[[str], None]) -> None:
        self._slots = slots
        self._tell = tell
        self._shares = sorted(set(slots.all_shares()))
        self._nodes: list[dict[str, float]] | None = None
        self._leaving: frozenset[str] = frozenset()
        self._limit: Mapping[str, float] | None = None
        self._looked = -math.inf
        self.refused: list[str] = []
        """The nodes that joined with other versions than the driver's."""
        self.count = slots.count
        """Trials of the usual share that fit at present."""

    def takes_another(self, running: Collection[Share]) -> bool:
        """Whether a trial of the smallest share would find its place beside those that run."""
        self._look()
        if self._slots.concurrent is not None and len(running) >= self._slots.concurrent:
            return False
        if len(self._shares) == 1 or self._limit is not None:
            return len(running) < self.count
        packing = Packing(self._nodes or [])
        for share in sorted(running, reverse=True):
            packing.add(share)
        return packing.add(self._shares[0])

    def refuse(self, node: Answer) -> None:
        """Give no trials to a node of other versions."""
        if node.node not in self.refused:
            self.refused.append(node.node)
            self._looked = -math.inf
            self._tell(
                "A node that joined gets no trials, for it has not the versions of this machine:\n"
                f"{table_of_versions(versions_here(), [node])}"
            )

    def is_closing(self, node: str) -> bool:
        """Whether what runs on a node should go on elsewhere, while it still can."""
        self._look()
        return node in self._leaving or node in self.refused

    def has_lost(self, node: str) -> bool:
        """Whether the end of a worker says nothing of its trial, but of the node."""
        return node in self.refused or is_gone(node)

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._leaving = draining_nodes()
        nodes = alive_resources(self.refused)
        if nodes != self._nodes:
            self._limit = growth_limit()
            count = _most(self._slots.usual, nodes, self._limit)
            is_first, changed = self._nodes is None, count != self.count
            self._nodes, self.count = nodes, count
            if changed and not is_first:
                self._tell(
                    f"The cluster has {_count(len(nodes), 'node')} now, room for "
                    f"{_count(count, 'trial')} at a time."
                )
        self._looked = time.monotonic()


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
