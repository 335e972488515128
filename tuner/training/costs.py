"""The costs of a network on its training device, measured before the first epoch."""

from collections.abc import Sequence

import torch

from tuner.config import CostObjective, TrialConfig
from tuner.data.splits import Splits
from tuner.metrics.latency import predict_ms
from tuner.models.build import build_folded
from tuner.models.custom import to_channels_last
from tuner.training.device import compute_dtype
from tuner.training.initial_weights import InitialWeights


def measure_costs(
    config: TrialConfig,
    splits: Splits,
    device: torch.device,
    costs: Sequence[CostObjective],
    *,
    start: InitialWeights | None = None,
) -> dict[str, float]:
    """Measure the requested costs of a configuration's network; its weights do not matter.

    With folds, the costs are of all its networks together. Draws from torch's global generator.

    Args:
        config: The network and its precision.
        splits: The images.
        device: Where to measure the latency, in the same way as for members of an ensemble.
        costs: What to measure; the number of parameters needs no measurement.
        start: The weights that a ``pretrained`` model starts from, for their normalization.

    Returns:
        ``latency_ms`` and ``size_mb``, as far as they are requested.

    Raises:
        UsageError: As ``build_model``.
    """
    asked = {cost.cost: cost for cost in costs if cost.cost != "parameters"}
    if not asked:
        return {}
    network = build_folded(config.model, splits.num_classes, splits.image_shape, splits.num_folds)
    found: dict[str, float] = {}
    if "size_mb" in asked:
        tensors = network.state_dict().values()
        found["size_mb"] = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
    if (latency := asked.get("latency_ms")) is not None:
        normalized = start or splits
        whole = predict_ms(
            to_channels_last(network.to(device)),
            splits.image_shape,
            batch=latency.batch,
            device=device,
            dtype=compute_dtype(config.precision, device),
            mean=normalized.mean,
            std=normalized.std,
        )
        found["latency_ms"] = whole / latency.batch
    return found
