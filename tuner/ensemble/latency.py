"""How long members take on this machine, and what accuracy the time buys."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tuner.config import Metric, Tta
from tuner.ensemble.members import Network
from tuner.metrics.figures import Latency
from tuner.metrics.goal import score
from tuner.metrics.latency import predict_ms
from tuner.metrics.predict import value_of
from tuner.run.checkpoint import load_checkpoint
from tuner.training.device import compute_dtype
from tuner.voting import soft_vote

LARGE_BATCH = 256
MOST_COMBINED = 10
"""Maximum number of members of which every combination is tried: 1,023."""


def measure_latency(
    network: Network, image_shape: tuple[int, int, int], tta: Tta, device: torch.device
) -> Latency:
    """Time a network on ``device``, with the views that ``tta`` selects."""
    model, checkpoint = load_checkpoint(network.file, network.model)
    model = model.to(device)
    one, many = (
        predict_ms(
            model,
            image_shape,
            batch=batch,
            device=device,
            dtype=compute_dtype(network.precision, device),
            mean=checkpoint.mean,
            std=checkpoint.std,
            tta=tta,
        )
        for batch in (1, LARGE_BATCH)
    )
    return Latency(one_ms=one, batch_ms=many)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierPoint:
    """Members that no others beat in as little time on the validation images."""

    members: tuple[int, ...]
    """Trial numbers."""
    latency_ms: float
    """Milliseconds for one image through all of them, one after the other."""
    latency_256_ms: float
    val_accuracy: float
    accuracy: float
    """Accuracy on the test images."""
    val_metric: float
    """Validation value of the metric by which the point was chosen."""
    metric: float
    """Value of the metric on the test images."""


def find_frontier(
    trials: tuple[int, ...],
    latencies: tuple[Latency, ...],
    weights: Tensor,
    val: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    metric: Metric,
) -> list[FrontierPoint]:
    """Return the combinations of members that are best for their time, fastest first.

    Args:
        trials: Trials of the M members; only the first 10 are combined.
        latencies: Latencies of these 10 at least.
        weights: Shape (M,), positive; scaled to sum to one in each combination.
        val: Probabilities (M, N, K) and labels (N,) that choose the points.
        test: The same for the test images, evaluated at the points.
        metric: The metric that chooses the points.
    """
    few = range(min(len(trials), MOST_COMBINED))
    sizes = range(1, len(few) + 1)
    combinations = [c for size in sizes for c in itertools.combinations(few, size)]

    def value(
        combination: tuple[int, ...], probs: Tensor, labels: Tensor, of: Metric = "accuracy"
    ) -> float:
        chosen = list(combination)
        shares = weights[chosen] / weights[chosen].sum()
        return value_of(soft_vote(probs[chosen], shares), labels, of)

    timed = sorted(
        (sum(latencies[i].one_ms for i in c), -score(value(c, *val, metric), metric), c)
        for c in combinations
    )
    points: list[FrontierPoint] = []
    best = -math.inf
    for time, negative, combination in timed:
        if -negative > best:
            best = -negative
            points.append(
                FrontierPoint(
                    members=tuple(trials[i] for i in combination),
                    latency_ms=time,
                    latency_256_ms=sum(latencies[i].batch_ms for i in combination),
                    val_accuracy=value(combination, *val),
                    accuracy=value(combination, *test),
                    val_metric=score(best, metric),
                    metric=value(combination, *test, metric),
                )
            )
    return points
