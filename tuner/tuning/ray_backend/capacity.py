"""Whether the cluster can take one more trial, as nodes join and leave."""

import math
import time
from collections.abc import Callable, Collection

from tuner.tuning.ray_backend.autoscaler import growth
from tuner.tuning.ray_backend.nodes import (
    Answer,
    alive_resources,
    draining_nodes,
    gone_nodes,
    is_gone,
    table_of_versions,
    versions_here,
)
from tuner.tuning.ray_backend.resources import Packing, Share, Slots, count_of, most_at_once

LOOK_SECONDS = 2.0
"""Between two looks at which nodes there are."""


class Room:
    """Whether the connected cluster can take one more trial.

    Attributes:
        refused: The nodes that joined and cannot run trials.
        count: Trials of the usual share that fit at present.
    """

    def __init__(self, slots: Slots, tell: Callable[[str], None]) -> None:
        self._slots = slots
        self._tell = tell
        self._shares = sorted(set(slots.all_shares()))
        self._nodes: list[dict[str, float]] | None = None
        self._leaving: frozenset[str] = frozenset()
        self._gone: dict[str, float] = {}
        """The nodes that have left -> when that was noticed, in seconds of the monotonic clock."""
        self._looked = -math.inf
        self._ahead = 0.0
        """Trials that may wait for nodes, so that an autoscaler sees what it is to add."""
        self._placeless: set[Share] = set()
        """The shares that no node has, as it is now."""
        self._awaited: set[Share] = set()
        self._autoscaler = ""
        self._told: set[str] = set()
        self.refused: list[str] = []
        self.count = slots.count

    def takes_another(self, running: Collection[Share]) -> bool:
        """Whether a trial of the smallest share would find its place beside those that run.

        Where an autoscaler may add nodes, as many again are to wait for them: what is proposed
        early has learned nothing of what runs, and what never waits lets no cluster grow.
        """
        self._look()
        for share in self._placeless.intersection(running) - self._awaited:
            self._awaited.add(share)
            self._tell(f"Waiting for a node that has {share}{self._autoscaler}.")
        if self._slots.concurrent is not None and len(running) >= self._slots.concurrent:
            return False
        if len(self._shares) == 1:
            return len(running) < self.count + self._ahead
        packing = Packing(self._nodes or [])
        num_waiting = sum(not packing.add(share) for share in sorted(running, reverse=True))
        return packing.add(self._shares[0]) or num_waiting < self._ahead

    def refuse(self, node: Answer) -> None:
        """Return no trials to a node of other versions, or with a problem."""
        if node.node in self.refused:
            return
        self.refused.append(node.node)
        self._looked = -math.inf
        if node.problem:
            problem = node.problem.rstrip(".")
            reason = f": {node.host} {node.node[:8]}: {problem}. Give it the storage of the others."
        else:
            table = table_of_versions(versions_here(), [node])
            reason = f", for it has not the versions of this machine:\n{table}"
        self._tell(f"A node that joined gets no trials{reason}")

    def tell_once(self, line: str) -> None:
        """Tell the user what several workers of a node have to say."""
        if line not in self._told:
            self._told.add(line)
            self._tell(line)

    @property
    def closing(self) -> tuple[str, ...]:
        """The nodes whose trials should go on elsewhere, while they still can."""
        self._look()
        return tuple(sorted(self._leaving.union(self.refused)))

    def has_lost(self, node: str) -> bool:
        """Whether the end of a worker says nothing of its trial, but of the node."""
        return node in self.refused or is_gone(node)

    def lost_since(self, moment: float) -> str:
        """Name a node that has left the cluster after ``moment``; empty if none has."""
        self._look()
        return next((node for node, noticed in self._gone.items() if noticed >= moment), "")

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        noticed = -math.inf if self._nodes is None else now
        self._gone |= dict.fromkeys(gone_nodes() - self._gone.keys(), noticed)
        self._leaving = draining_nodes()
        nodes = alive_resources(self.refused)
        if nodes != self._nodes:
            self._measure(nodes)
        self._looked = now

    def _measure(self, nodes: list[dict[str, float]]) -> None:
        usual, grown = self._slots.usual, growth()
        count = Packing(nodes).add_all(usual)
        is_first, changed = self._nodes is None, count != self.count
        self._nodes, self.count = nodes, count
        self._ahead = min(max(1, count), most_at_once(usual, nodes, grown) - count) if grown else 0
        self._placeless = {share for share in self._shares if not Packing(nodes).add(share)}
        self._awaited &= self._placeless
        self._autoscaler = ", from the autoscaler" if grown else ""
        if changed and not is_first:
            self._tell(
                f"The cluster has {count_of(len(nodes), 'node')} now, room for "
                f"{count_of(count, 'trial')} at a time."
            )
