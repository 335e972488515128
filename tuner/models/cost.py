"""What a network costs, counted before any of it is trained."""

import contextlib
import functools
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tuner.config import Constraints, ModelConfig
from tuner.models.build import build_model
from tuner.models.families import ImageShape, has_own_code


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The size of a network."""

    parameters: int
    flops: int
    """Floating-point operations of one image's way forward: two for each multiply-add of
    convolutions, matrix products and attention; elementwise work does not count. A training step
    takes about three times as many."""


def count_cost(config: ModelConfig, num_classes: int, image_shape: ImageShape) -> Cost:
    """Count the parameters and FLOPs of the network that ``config`` names.

    Raises:
        UsageError: As ``build_model``.
    """
    return _count(json.dumps(config.to_plain(), sort_keys=True), num_classes, tuple(image_shape))


def count_parameters(config: ModelConfig, num_classes: int, image_shape: ImageShape) -> int:
    """Count the parameters alone, which takes less time.

    Raises:
        UsageError: As ``build_model``.
    """
    plain = json.dumps(config.to_plain(), sort_keys=True)
    return _count_parameters(plain, num_classes, tuple(image_shape))


@functools.lru_cache(maxsize=4096)
def _count_parameters(model: str, num_classes: int, image_shape: ImageShape) -> int:
    ((family, params),) = json.loads(model).items()
    config = ModelConfig(family, params)
    device = torch.device(_device_of(config))
    drawing = _Undrawn() if device.type == "meta" else contextlib.nullcontext()
    with torch.random.fork_rng(devices=[]), device, drawing:
        network = build_model(config, num_classes, image_shape)
    return sum(parameter.numel() for parameter in network.parameters())


class _Undrawn(TorchFunctionMode):
    """Leaves tensors without numbers as they are.

    For drawing none, PyTorch 2.14 would load its compiler: 1.4 s before the first trial starts.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, unless it draws."""
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _device_of(config: ModelConfig) -> str:
    """Return where a network is built to be counted.

    Tensors on the meta device have shapes and no numbers, so that counting takes no memory; what
    a user's own code does with numbers is unknown.
    """
    return "cpu" if has_own_code(config) else "meta"


@functools.lru_cache(maxsize=4096)
def _count(model: str, num_classes: int, image_shape: ImageShape) -> Cost:
    ((family, params),) = json.loads(model).items()
    config = ModelConfig(family, params)
    with (
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        # Within it PyTorch's layers of attention take no fast path, of which nothing is counted.
        torch.device(_device_of(config)),
        # Nor is a CPU's fused attention counted.
        sdpa_kernel(SDPBackend.MATH),
    ):
        network = build_model(config, num_classes, image_shape).eval()
        images = torch.zeros(1, *image_shape)
        with FlopCounterMode(display=False) as counter:
            network(images)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(parameters=parameters, flops=counter.get_total_flops())


def limit_violation(
    config: ModelConfig,
    constraints: Constraints,
    num_classes: int,
    image_shape: ImageShape,
    *,
    num_networks: int = 1,
) -> str:
    """Say by what the network exceeds its limits; nothing if it keeps them.

    A user's own network is built even if there are no limits, so that its mistakes show here and
    not in a trial.

    Args:
        config: Of the network.
        constraints: The limits.
        num_classes: K.
        image_shape: (C, H, W).
        num_networks: Networks of the configuration, which share the limits: one for each fold.

    Raises:
        UsageError: As ``build_model``.
    """
    limits = {"parameters": constraints.parameters, "FLOPs": constraints.flops}
    if not any(limits.values()) and not has_own_code(config):
        return ""
    cost = count_cost(config, num_classes, image_shape)
    counts = {"parameters": num_networks * cost.parameters, "FLOPs": num_networks * cost.flops}
    return " and ".join(
        f"{counts[name]:.3g} {name}, above the limit of {limit:.3g}"
        for name, limit in limits.items()
        if limit is not None and counts[name] > limit
    )
