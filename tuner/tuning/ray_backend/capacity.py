"""How many trials the connected cluster can run, as nodes join and leave."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from tuner.config import Resources, TrialConfig
from tuner.errors import ClusterError, UsageError
from tuner.schema import plural
from tuner.tuning.ray_backend.autoscaler import Autoscaler, find_autoscaler
from tuner.tuning.ray_backend.nodes import (
    Answer,
    alive_resources,
    draining_nodes,
    gone_nodes,
    is_gone,
    table_of_versions,
    versions_here,
)
from tuner.tuning.resources import (
    CapacityPlan,
    Packing,
    TrialResources,
    resources_from,
)

LOOK_SECONDS = 2.0
"""Seconds between two checks of which nodes exist."""
REFUSED_SECONDS = 600.0
"""Seconds after which a node that could not use the storage, or its GPU, gets a trial again."""


def plan_capacity(
    resources: Resources,
    concurrent: int | None = None,
    count_parameters: Callable[[TrialConfig], int] = lambda config: 0,
    *,
    is_most: bool = False,
) -> CapacityPlan:
    """Decide which resources of the connected cluster each trial gets.

    By default a trial gets one CPU, and one GPU if there are any.

    Args:
        resources: The requested resources.
        concurrent: Maximum number of trials at once; ``None`` for as many as fit.
        count_parameters: As in ``CapacityPlan``.
        is_most: Whether fewer at once are enough, too, as for a search resumed elsewhere.

    Raises:
        ClusterError: If no node could ever run a trial, or not so many at once. Nodes that an
            autoscaler may add count too.
    """
    nodes, autoscaler = alive_resources(), find_autoscaler()
    kinds = [kind.resources for kind in autoscaler.kinds] if autoscaler else []
    has_gpus = any(node.get("GPU", 0) for node in [*nodes, *kinds])
    plan = CapacityPlan(
        default=resources_from(resources, TrialResources(cpus=1.0, gpus=float(has_gpus))),
        count=0,
        concurrent=concurrent,
        own=resources,
        count_parameters=count_parameters,
    )
    for one in plan.all_resources():
        _check_possible(one, nodes, autoscaler)
    # More trials may fit with smaller resources than with the default ones.
    most = {one: most_at_once(one, nodes, autoscaler) for one in plan.all_resources()}
    smallest = max(most, key=lambda one: most[one])
    if concurrent is not None and not is_most and concurrent > most[smallest]:
        raise ClusterError(
            f"--concurrent {concurrent}: only {plural(most[smallest], 'trial')} of {smallest} "
            f"can run at once. Give --concurrent {most[smallest]} or less, or less to each trial."
        )
    count = most[plan.default]
    if math.isinf(count):
        count = max(1, Packing(nodes).add_all(plan.default), concurrent or 0)
    return replace(plan, count=int(min(count, concurrent or count)))


def _check_possible(
    resources: TrialResources, nodes: list[dict[str, float]], autoscaler: Autoscaler | None
) -> None:
    if resources.gpus > 1 and resources.gpus != int(resources.gpus):
        raise UsageError(
            f"a trial asks for {resources.gpus:g} GPUs: above 1, only whole GPUs can be given; "
            "change --gpus-per-trial, or resources: in the space"
        )
    if most_at_once(resources, nodes, autoscaler):
        return
    autoscaled = f", and the autoscaler adds none that has more ({autoscaler})" * bool(autoscaler)
    largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
    raise ClusterError(
        f"a trial asks for {resources}, but the largest of "
        f"{plural(len(nodes), 'node')} has {plural(largest.get('CPU', 0), 'CPU')} and "
        f"{plural(largest.get('GPU', 0), 'GPU')}{autoscaled}. Lower "
        "--cpus-per-trial or --gpus-per-trial (0 trains on CPUs), or resources: in the space."
    )


def most_at_once(
    resources: TrialResources, nodes: list[dict[str, float]], autoscaler: Autoscaler | None
) -> float:
    """Count the trials of the given resources that fit at once, also on nodes that may be added.

    Infinitely many may fit if an autoscaler does not report what it may add.
    """

    def taken_by(node: Mapping[str, float]) -> int:
        return Packing([node]).add_all(resources)

    if autoscaler is not None and not autoscaler.kinds:
        return math.inf
    added = autoscaler.addable_nodes(nodes, taken_by) if autoscaler else []
    return sum(map(taken_by, [*nodes, *added]))


def fits_together(plan: CapacityPlan) -> Callable[[Sequence[TrialResources]], bool]:
    """Return a function that checks whether some trials fit at once on the cluster as it is now.

    A single trial always fits: a node for it may still join.
    """
    nodes = alive_resources()
    is_uniform = len(set(plan.all_resources())) == 1 or find_autoscaler() is not None

    def fit(trials: Sequence[TrialResources]) -> bool:
        if len(trials) <= 1:
            return True
        if is_uniform or len(trials) > (plan.concurrent or math.inf):
            return len(trials) <= plan.count
        packing = Packing(nodes)
        return all(packing.add(resources) for resources in sorted(trials, reverse=True))

    return fit


class Capacity:
    """Tracks whether the connected cluster can take one more trial.

    Attributes:
        count: Number of trials of the default resources that fit at present.
    """

    def __init__(self, plan: CapacityPlan, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._kinds = sorted(set(plan.all_resources()))
        self._nodes: list[dict[str, float]] | None = None
        self._leaving: frozenset[str] = frozenset()
        self._gone: dict[str, float] = {}
        """Node that has left -> when that was noticed, in seconds of the monotonic clock."""
        self._looked = -math.inf
        self._ahead = 0.0
        """Number of trials that may wait for nodes, so that an autoscaler sees what to add."""
        self._placeless: set[TrialResources] = set()
        """Resources that do not fit on any node at present."""
        self._awaited: set[TrialResources] = set()
        self._autoscaler = ""
        self._told: set[str] = set()
        self._refused: dict[str, float] = {}
        """Node that cannot run trials -> until when, in seconds of the monotonic clock."""
        self._left_out: frozenset[str] = frozenset()
        """The refused nodes at the last check."""
        self.count = plan.count

    def has_room(self, running: Collection[TrialResources]) -> bool:
        """Whether a trial of the smallest resources would fit alongside those that run.

        If an autoscaler may add nodes, as many trials again may wait for them: trials proposed
        early learn nothing from those that run, but if none waits, the cluster never grows.
        """
        self._look()
        for resources in self._placeless.intersection(running) - self._awaited:
            self._awaited.add(resources)
            self._tell(f"Waiting for a node that has {resources}{self._autoscaler}.")
        if self._plan.concurrent is not None and len(running) >= self._plan.concurrent:
            return False
        if len(self._kinds) == 1:
            return len(running) < self.count + self._ahead
        packing = Packing(self._nodes or [])
        num_waiting = sum(not packing.add(one) for one in sorted(running, reverse=True))
        return packing.add(self._kinds[0]) or num_waiting < self._ahead

    @property
    def refused(self) -> list[str]:
        """The nodes that cannot run trials at present."""
        now = time.monotonic()
        return [node for node, end in self._refused.items() if now < end]

    def refuse(self, node: Answer) -> None:
        """Keep trials off a node with other versions, or for a while off one with a problem."""
        if node.node in self.refused:
            return
        self._looked = -math.inf
        if node.problem:
            # It may pass, or be fixed.
            self._refused[node.node] = time.monotonic() + REFUSED_SECONDS
            reason = (
                f": {node.host} {node.node[:8]}: {node.problem}; it is tried again every "
                f"{REFUSED_SECONDS / 60:.0f} minutes."
            )
        else:
            self._refused[node.node] = math.inf
            table = table_of_versions(versions_here(), [node])
            reason = f", because its versions differ from this machine's:\n{table}"
        # Lines about the same node may differ: the problem may name the trial.
        self.tell_once(f"A node gets no trials{reason}", about=node.node)

    def accept(self, node: str) -> None:
        """Note that a node runs a trial; if it fails again later, that is reported again."""
        self._refused.pop(node, None)
        self._told.discard(node)

    def tell_once(self, line: str, about: str = "") -> None:
        """Print a line once that several workers may send; with ``about``, once per subject."""
        key = about or line
        if key not in self._told:
            self._told.add(key)
            self._tell(line)

    @property
    def closing_nodes(self) -> tuple[str, ...]:
        """The nodes whose trials should continue elsewhere, while they still can."""
        self._look()
        return tuple(sorted(self._leaving.union(self.refused)))

    def has_lost(self, node: str) -> bool:
        """Whether the end of a worker says something about its node, not about its trial."""
        return node in self._refused or is_gone(node)

    def lost_since(self, moment: float) -> str:
        """Return a node that has left the cluster since ``moment``; empty if none has."""
        self._look()
        return next((node for node, noticed in self._gone.items() if noticed >= moment), "")

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        noticed = -math.inf if self._nodes is None else now
        self._gone |= dict.fromkeys(gone_nodes() - self._gone.keys(), noticed)
        self._leaving = draining_nodes()
        refused = frozenset(self.refused)
        nodes = alive_resources(refused)
        if nodes != self._nodes:
            # A separate line reports nodes that are refused or tried again.
            self._measure(nodes, is_told=refused == self._left_out)
        self._left_out = refused
        self._looked = now

    def _measure(self, nodes: list[dict[str, float]], *, is_told: bool) -> None:
        default, autoscaler = self._plan.default, find_autoscaler()
        count = Packing(nodes).add_all(default)
        most = most_at_once(default, nodes, autoscaler)
        self._ahead = min(max(1, count), most - count) if autoscaler else 0
        count = min(count, self._plan.concurrent or count)
        is_first, changed = self._nodes is None, count != self.count
        self._nodes, self.count = nodes, count
        self._placeless = {one for one in self._kinds if not Packing(nodes).add(one)}
        self._awaited &= self._placeless
        self._autoscaler = ", from the autoscaler" if autoscaler else ""
        if changed and is_told and not is_first:
            self._tell(
                f"The cluster has {plural(len(nodes), 'node')} now, room for "
                f"{plural(count, 'trial')} at a time."
            )
