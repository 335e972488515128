"""The size of a network, counted before any training."""

import contextlib
import functools
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tuner.config import Constraints, ModelConfig
from tuner.errors import UsageError
from tuner.models.build import build_model
from tuner.models.families import ImageShape, has_own_code
from tuner.models.layers import num_weights
from tuner.models.trust import code_of
from tuner.models.user_code import first_line_of, place_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The size of a network."""

    parameters: int
    flops: int
    """Floating-point operations of one image's forward pass: two for each multiply-add of
    convolutions, matrix products and attention; elementwise work does not count. A training step
    takes about three times as many."""


def count_cost(config: ModelConfig, num_classes: int, image_shape: ImageShape) -> Cost:
    """Count the parameters and FLOPs of the network in ``config``.

    Raises:
        UsageError: As ``build_model``, and if a user's code cannot take a single image.
    """
    return _count(json.dumps(config.to_plain(), sort_keys=True), num_classes, tuple(image_shape))


def count_parameters(config: ModelConfig, num_classes: int, image_shape: ImageShape) -> int:
    """Count only the parameters, which takes less time.

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
    return num_weights(network)


class _Undrawn(TorchFunctionMode):
    """Leaves tensors without numbers unchanged.

    PyTorch 2.14 would load its compiler to draw nothing: 1.4 s before the first trial starts.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, unless it draws."""
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _device_of(config: ModelConfig) -> str:
    """Return the device on which a network is built for counting.

    Tensors on the meta device have shapes but no numbers, so counting takes no memory; custom
    networks are built on the CPU, because their code may do anything with the numbers.
    """
    return "cpu" if has_own_code(config) else "meta"


@functools.lru_cache(maxsize=4096)
def _count(model: str, num_classes: int, image_shape: ImageShape) -> Cost:
    ((family, params),) = json.loads(model).items()
    config = ModelConfig(family, params)
    with (
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        # Within it, PyTorch's attention layers skip their fast path, in which nothing is counted.
        torch.device(_device_of(config)),
        # A CPU's fused attention is not counted either.
        sdpa_kernel(SDPBackend.MATH),
    ):
        network = build_model(config, num_classes, image_shape)
        network.eval()
        with FlopCounterMode(display=False) as counter:
            _pass_one(network, config, num_classes, image_shape)
    return Cost(parameters=num_weights(network), flops=counter.get_total_flops())


def _pass_one(
    network: nn.Module, config: ModelConfig, num_classes: int, image_shape: ImageShape
) -> None:
    """Pass one image through a network, and check the result of a user's code.

    This is not part of building a network, so that the checkpoints of earlier versions still load.

    Raises:
        UsageError: If the code fails on a single image, or drops its dimension.
    """
    shape, expected = (1, *image_shape), (1, num_classes)
    path = next(iter(code_of([config]).values()), "")
    try:
        logits = network(torch.zeros(shape))
    except Exception as error:
        if not path:
            raise
        raise UsageError(
            f"{place_of(path, error)}: the network fails on a single image, though not on two: "
            f"{first_line_of(error)}"
        ) from error
    if logits.shape != expected:
        raise UsageError(
            f"{path}: the network returns {tuple(logits.shape)} for images of shape {shape}; it "
            f"has to return logits of shape {expected}. flatten(1) keeps the dimension of a single "
            "image, and squeeze() drops it."
        )


def limit_violation(
    config: ModelConfig,
    constraints: Constraints,
    num_classes: int,
    image_shape: ImageShape,
    *,
    num_networks: int = 1,
) -> str:
    """Return how the network exceeds its limits; empty if it does not.

    A custom network is built even without limits, so that its errors show here and not in a trial.

    Args:
        config: The network.
        constraints: The limits.
        num_classes: K.
        image_shape: (C, H, W).
        num_networks: Number of networks of the configuration that share the limits: one per fold.

    Raises:
        UsageError: As ``count_cost``.
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
