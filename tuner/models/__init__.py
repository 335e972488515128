"""The architectures by name; a new family is one file here and one entry in ``ARCHITECTURES``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tuner.config import ModelConfig
from tuner.errors import UsageError
from tuner.models.cnn import Cnn, CnnParams
from tuner.models.resnet import ResNet, ResNetParams
from tuner.schema import did_you_mean, parse, schema_of

ImageShape = tuple[int, int, int]
"""Channels, height and width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A family of networks."""

    params: type
    """Dataclass of the searchable parameters, each with a default and its range."""
    build: Callable[[Any, int, ImageShape], nn.Module]
    """From the parameters, the number of classes K and the shape of an image to the network, which
    maps normalized images (N, C, H, W) to logits (N, K)."""


ARCHITECTURES: dict[str, Architecture] = {
    "cnn": Architecture(params=CnnParams, build=Cnn),
    "resnet": Architecture(params=ResNetParams, build=ResNet),
}


def build_model(
    config: ModelConfig, num_classes: int, image_shape: ImageShape = (3, 32, 32)
) -> nn.Module:
    """Build the network that ``config`` names, its weights drawn from torch's global generator.

    Raises:
        UsageError: On an unknown family, or a parameter that the family lacks or refuses.
    """
    if config.family not in ARCHITECTURES:
        hint = did_you_mean(config.family, ARCHITECTURES)
        known = f"; known are {', '.join(ARCHITECTURES)}"
        raise UsageError(f"model: unknown family {config.family!r}{hint or known}")
    family = ARCHITECTURES[config.family]
    params = parse(schema_of(family.params), config.params, f"model.{config.family}")
    return family.build(params, num_classes, image_shape)
