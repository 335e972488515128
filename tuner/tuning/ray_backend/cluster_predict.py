"""An ensemble's networks spread over a cluster: one task each, on a GPU if there are any."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import ray
import torch
from torch import Tensor

from tuner.config import Resources, Tta
from tuner.ensemble.members import Network, Predict, predict_network
from tuner.errors import ClusterError, first_line
from tuner.training.device import device_for
from tuner.tuning.ray_backend.capacity import plan_capacity
from tuner.tuning.ray_backend.cluster import connected
from tuner.tuning.ray_backend.payload import as_tensor


@contextmanager
def predicting_on_cluster(address: str) -> Iterator[Predict]:
    """Yield a function that predicts with networks on the cluster at ``address``.

    The cluster's nodes read the run folder, as in the search.

    Raises:
        UsageError: If the address is of a kind that cannot be used.
        ClusterError: If nothing answers there.
    """
    with connected(address):
        yield predict_on_cluster


def predict_on_cluster(networks: Sequence[Network], images: Tensor, tta: Tta) -> Tensor:
    """Return the class probabilities, float32 on the CPU, shape (M, N, K).

    Raises:
        TunerError: If a network's file is missing or damaged, as seen from its node.
        ClusterError: If a worker was lost.
    """
    resources = plan_capacity(Resources()).default
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(_predict)
    shared = ray.put(images.numpy())  # Once per node, however many networks use them.
    try:
        results = ray.get(
            [task.remote(network, shared, tta, resources.gpus) for network in networks]
        )
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        reason = first_line(error)
        raise ClusterError(f"the cluster lost a member's worker: {reason}. Try again.") from error
    return torch.from_numpy(np.stack(results))


def _predict(network: Network, images: np.ndarray, tta: Tta, gpus: float) -> np.ndarray:
    return predict_network(network, as_tensor(images), tta, device_for(gpus)).numpy()
