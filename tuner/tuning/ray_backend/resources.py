"""What each trial gets of the cluster, and how many trials fit on it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tuner.config import Resources, ShareConfig, TrialConfig
from tuner.errors import ClusterError, UsageError
from tuner.run.trial import threads_of
from tuner.tuning.ray_backend.autoscaler import Growth, growth
from tuner.tuning.ray_backend.nodes import alive_resources

ROUNDING = 1e-6
"""Three thirds of a GPU are one."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Share:
    """What one trial gets."""

    gpus: float
    cpus: float

    @property
    def threads(self) -> int:
        """See ``threads_of``."""
        return threads_of(self.cpus)

    def __str__(self) -> str:
        gpus = f" and {count_of(self.gpus, 'GPU')}" if self.gpus else ""
        return count_of(self.cpus, "CPU") + gpus


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
    """Counts a network's parameters; ``None`` where nobody asks."""

    def to_plain(self) -> dict[str, float]:
        """Return the usual share and the number of trials, for the run's record."""
        return {"cpus": self.usual.cpus, "gpus": self.usual.gpus, "count": self.count}

    def share(self, config: TrialConfig) -> Share:
        """Return what a trial gets: its family's share, or more if its network is large."""
        share = self._of_family(config.model.family)
        if (large := self.resources.large) is None:
            return share
        return _larger(share, large) if self.num_parameters(config) >= large.parameters else share

    def num_parameters(self, config: TrialConfig) -> int:
        """Return the number of parameters of a trial's network; 0 where it cannot be built."""
        return self.count_parameters(config) if self.count_parameters else 0

    def all_shares(self) -> Iterator[Share]:
        """Yield every share that a trial may get."""
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
        return f"{count_of(self.count, 'trial')} at a time, each on {self.usual}{exception}"


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
    nodes, grown = alive_resources(), growth()
    kinds = [kind.resources for kind in grown.kinds] if grown else []
    slots = Slots(
        usual=_own(resources, Share(cpus=1.0, gpus=float(_have_gpus([*nodes, *kinds])))),
        count=0,
        concurrent=concurrent,
        resources=resources,
        count_parameters=count_parameters,
    )
    for share in slots.all_shares():
        _check_possible(share, nodes, grown)
    # More than the usual share may fit of a smaller one.
    most = {share: most_at_once(share, nodes, grown) for share in slots.all_shares()}
    smallest = max(most, key=lambda share: most[share])
    if concurrent is not None and concurrent > most[smallest]:
        raise ClusterError(
            f"--concurrent {concurrent}: only {count_of(most[smallest], 'trial')} of {smallest} "
            f"can run at once. Give --concurrent {most[smallest]} or less, or less to each trial."
        )
    count = most[slots.usual]
    if math.isinf(count):
        count = max(1, Packing(nodes).add_all(slots.usual), concurrent or 0)
    return replace(slots, count=int(min(count, concurrent or count)))


def _have_gpus(nodes: Sequence[Mapping[str, float]]) -> bool:
    return any(node.get("GPU", 0) for node in nodes)


def _check_possible(share: Share, nodes: list[dict[str, float]], grown: Growth | None) -> None:
    if share.gpus > 1 and share.gpus != int(share.gpus):
        raise UsageError(
            f"a trial asks for {share.gpus:g} GPUs: above 1, only whole GPUs can be given; change "
            "--gpus-per-trial, or resources: in the space"
        )
    if most_at_once(share, nodes, grown):
        return
    autoscaled = f", and the autoscaler adds none that has more ({grown})" if grown else ""
    largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
    raise ClusterError(
        f"a trial asks for {share}, but the largest of "
        f"{count_of(len(nodes), 'node')} has {count_of(largest.get('CPU', 0), 'CPU')} and "
        f"{count_of(largest.get('GPU', 0), 'GPU')}{autoscaled}. Lower "
        "--cpus-per-trial or --gpus-per-trial (0 trains on CPUs), or resources: in the space."
    )


def most_at_once(share: Share, nodes: list[dict[str, float]], grown: Growth | None) -> float:
    """Count the trials of one share that fit at once, on nodes to come too.

    Infinitely many may fit where an autoscaler does not tell what it may add.
    """

    def taken_by(node: Mapping[str, float]) -> int:
        return Packing([node]).add_all(share)

    if grown is not None and not grown.kinds:
        return math.inf
    return sum(map(taken_by, [*nodes, *(grown.to_come(nodes, taken_by) if grown else [])]))


class Packing:
    """Nodes as trials fill them, each trial on the first node that has its share left."""

    def __init__(self, nodes: Sequence[Mapping[str, float]]) -> None:
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
    """Return what says whether trials of some shares can run at once on the cluster as it is now.

    One trial alone always can: a node for it may be still to come.
    """
    nodes = alive_resources()
    is_uniform = len(set(slots.all_shares())) == 1 or growth() is not None

    def fit(shares: Sequence[Share]) -> bool:
        if len(shares) <= 1:
            return True
        if is_uniform or len(shares) > (slots.concurrent or math.inf):
            return len(shares) <= slots.count
        packing = Packing(nodes)
        return all(packing.add(share) for share in sorted(shares, reverse=True))

    return fit


def count_of(number: float, noun: str) -> str:
    """Return a number with its noun, in the plural where it is one."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
