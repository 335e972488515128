"""What an autoscaler may add to the connected cluster, as far as a driver can know."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tuner.schema import plural
from tuner.storage.paths import expanded
from tuner.tuning.ray_backend.private import (
    DEBUG_AUTOSCALING_STATUS,
    GCS_AUTOSCALER_STATE_NAMESPACE,
    GCS_AUTOSCALER_V2_ENABLED_KEY,
    _internal_kv_get,
    state,
)

BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""The file of ``ray up`` on the head node of its cluster; lists what each kind of machine has."""
LOOKAHEAD = 1000
"""Number of nodes to count on where there is no limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeKind:
    """A kind of node that may be added."""

    resources: Mapping[str, float]
    most: int
    """Maximum number of nodes of this kind at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Autoscaler:
    """An autoscaler, described by what it may add."""

    kinds: tuple[NodeKind, ...] = ()
    """Empty if an autoscaler runs but does not report what it may add."""
    most: int = LOOKAHEAD
    """Maximum number of nodes of all kinds at once, not counting the head."""

    def addable_nodes(
        self, nodes: Sequence[Mapping[str, float]], worth: Callable[[Mapping[str, float]], float]
    ) -> list[dict[str, float]]:
        """Return the nodes that may still be added.

        Args:
            nodes: The resources of the existing nodes.
            worth: Rates a node; if not all can be added, those worth most are.
        """
        workers = [node for node in nodes if "node:__internal_head__" not in node]
        found: list[dict[str, float]] = []
        for kind in sorted(self.kinds, key=lambda kind: worth(kind.resources), reverse=True):
            present = sum(_is_of(node, kind) for node in workers)
            left = min(kind.most - present, self.most - len(workers) - len(found))
            found += [dict(kind.resources)] * max(0, left)
        return found

    def __str__(self) -> str:
        kinds = [
            f"{kind.most} of {plural(kind.resources.get('CPU', 0), 'CPU')} and "
            f"{plural(kind.resources.get('GPU', 0), 'GPU')}"
            for kind in self.kinds
        ]
        return f"at most {', '.join(kinds)}" if kinds else "of kinds that it does not report"


def _is_of(node: Mapping[str, float], kind: NodeKind) -> bool:
    return all(node.get(name, 0) == kind.resources.get(name, 0) for name in ("CPU", "GPU"))


def find_autoscaler() -> Autoscaler | None:
    """Return what the connected cluster's autoscaler may add; ``None`` if it has none."""
    # Ray's own store has an entry for it, which some who host Ray fill in; Ray itself does not.
    if (own := state.get_cluster_config()) is not None and (groups := own.node_group_configs):
        return _of_kinds([(dict(group.resources), group.max_count) for group in groups])
    names, config = _names(), _bootstrap()
    if config is not None and (config["head_node_type"] in names or (not names and _is_second())):
        return read_kinds(config)
    return Autoscaler() if names or _is_scaled_by_kuberay() else None


def read_kinds(config: Mapping[str, Any]) -> Autoscaler | None:
    """Read the file of ``ray up``, as stored on the head; ``None`` if it lets nothing be added."""
    most = config.get("max_workers", LOOKAHEAD)
    return _of_kinds(
        [
            (kind.get("resources", {}), kind.get("max_workers", most))
            for name, kind in config["available_node_types"].items()
            if name != config["head_node_type"]
        ],
        min(most, LOOKAHEAD),
    )


def _of_kinds(
    kinds: Sequence[tuple[Mapping[str, float], int]], most: int = LOOKAHEAD
) -> Autoscaler | None:
    found = [
        # Some configurations use -1 for no limit.
        NodeKind(resources=resources, most=min(limit, LOOKAHEAD) if limit > 0 else LOOKAHEAD)
        for resources, limit in kinds
        if limit
    ]
    if not found:
        return None
    # Ray's file does not say what custom machines have.
    is_told = all("CPU" in kind.resources for kind in found)
    return Autoscaler(kinds=tuple(found), most=most) if is_told else Autoscaler()


def _names() -> set[str]:
    """Return the kinds of the nodes that a first-generation autoscaler manages.

    Without one, the same process reports every node as a separate kind.
    """
    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    report = status.get("autoscaler_report") or {}
    names = (*report.get("active_nodes", {}), *report.get("pending_launches", {}))
    return {name for name in names if not name.startswith("node_")}


def _is_second() -> bool:
    """Whether the cluster has the v2 autoscaler, which does not report whether it may add nodes."""
    key = GCS_AUTOSCALER_V2_ENABLED_KEY.encode()
    return _internal_kv_get(key, namespace=GCS_AUTOSCALER_STATE_NAMESPACE.encode()) == b"1"


def _bootstrap() -> dict[str, Any] | None:
    path = expanded(BOOTSTRAP)
    found = yaml.safe_load(path.read_text()) if path.is_file() else {}
    is_whole = {"head_node_type", "available_node_types"} <= set(found)
    return found if is_whole else None


def _is_scaled_by_kuberay() -> bool:
    """Whether this is the head of a KubeRay cluster whose autoscaler runs in a separate container.

    In that case, and only then, Ray on the head is started without one.
    """
    return "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")
