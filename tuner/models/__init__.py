"""The architectures by name; a new family is one file here and one entry in ``ARCHITECTURES``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tuner.config import ModelConfig
from tuner.errors import UsageError
from tuner.models.cnn import Cnn, CnnParams
from tuner.models.convnext import ConvNeXt, ConvNeXtParams
from tuner.models.custom import CustomParams, build_custom
from tuner.models.resnet import ResNet, ResNetParams
from tuner.models.speednet import SpeedNet, SpeedNetParams
from tuner.models.vit import ViT, ViTParams
from tuner.models.wide_resnet import WideResNet, WideResNetParams
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
    "wide_resnet": Architecture(params=WideResNetParams, build=WideResNet),
    "speednet": Architecture(params=SpeedNetParams, build=SpeedNet),
    "convnext": Architecture(params=ConvNeXtParams, build=ConvNeXt),
    "vit": Architecture(params=ViTParams, build=ViT),
    "custom": Architecture(params=CustomParams, build=build_custom),
}


@runtime_checkable
class FitsImages(Protocol):
    """A network that takes some of its weights from the training images themselves."""

    def fit_to(self, images: Tensor) -> None:
        """Set such weights, once, before the first step.

        They have to be buffers or frozen parameters, so that checkpoints hold them.

        Args:
            images: Some thousands, normalized, float32, shape (N, C, H, W), on any device.
        """


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
