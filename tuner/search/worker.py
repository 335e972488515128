"""Where a worker starts, and what it does there before it trains: see that it can.

Nothing here needs PyTorch, which a node that joined in mid-search may lack.
"""

import platform
from typing import Any

import ray
from ray import tune

from tuner.search.nodes import versions_here


class DifferingNodeError(Exception):
    """A node has other versions than the driver."""


def place(params: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Ask Ray for a trial's share of a node, of any but those that ``avoid`` names."""
    share = {"CPU": params["cpus"], "GPU": params["gpus"]}
    if not params["avoid"]:
        return tune.PlacementGroupFactory([share])
    others = {"ray.io/node-id": f"!in({','.join(params['avoid'])})"}
    return tune.PlacementGroupFactory([share], bundle_label_selector=[others])


def train_if_alike(params: dict[str, Any], *, versions: dict[str, str], **shipped: Any) -> None:
    """Train one trial where the node has the versions of the driver, or hand it back.

    The first report holds ``node``, Ray's identifier of it, and where the versions differ ``host``
    and ``versions``.

    Args:
        params: Of ``train_trial``.
        versions: The driver's.
        shipped: For ``train_trial``.

    Raises:
        DifferingNodeError: Where the versions differ, so that this worker gets no other trial.
    """
    where = {"node": ray.get_runtime_context().get_node_id()}
    there = versions_here()
    if there != versions:
        # In pairs, for Tune flattens mappings.
        tune.report(where | {"host": platform.node(), "versions": list(there.items())})
        raise DifferingNodeError(f"{there}, not {versions}")
    tune.report(where)
    from tuner.search.trainable import train_trial

    train_trial(params, **shipped)
