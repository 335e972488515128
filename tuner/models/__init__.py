"""The architectures by name; a new family is one file here and one entry in ``ARCHITECTURES``."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from tuner.config import ModelConfig
from tuner.errors import UsageError
from tuner.models.cnn import Cnn, CnnParams
from tuner.models.convnext import ConvNeXt, ConvNeXtParams
from tuner.models.custom import CustomParams, build_custom
from tuner.models.pretrained import Pretrained, PretrainedParams, build_torchvision
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


def _build_pretrained(
    params: PretrainedParams, num_classes: int, image_shape: ImageShape
) -> nn.Module:
    """Build the network of ``params``, its weights random.

    Raises:
        UsageError: If a run's network takes other images, or has no head to replace.
    """
    if params.name:
        return build_torchvision(params, num_classes)
    source = source_of(params)
    channels, height, width = source.image_shape
    if image_shape[0] not in (1, channels):
        raise UsageError(
            f"model.pretrained: {params.run} was trained on images of {channels} channel, not of "
            f"{image_shape[0]}; start from a run on colour images"
        )
    size = params.image_size
    shape = (channels, size, size) if size else (channels, height, width)
    network = build_model(source.model, num_classes, shape)
    return Pretrained(network, params, num_classes, shape)


ARCHITECTURES: dict[str, Architecture] = {
    "cnn": Architecture(params=CnnParams, build=Cnn),
    "resnet": Architecture(params=ResNetParams, build=ResNet),
    "wide_resnet": Architecture(params=WideResNetParams, build=WideResNet),
    "speednet": Architecture(params=SpeedNetParams, build=SpeedNet),
    "convnext": Architecture(params=ConvNeXtParams, build=ConvNeXt),
    "vit": Architecture(params=ViTParams, build=ViT),
    "custom": Architecture(params=CustomParams, build=build_custom),
    "pretrained": Architecture(params=PretrainedParams, build=_build_pretrained),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The network of an earlier run's trial, as ``PretrainedParams.source`` holds it."""

    model: ModelConfig
    image_shape: ImageShape

    def to_json(self) -> str:
        """Return the text that ``from_json`` reads."""
        plain = {"model": self.model.to_plain(), "image_shape": self.image_shape}
        return json.dumps(plain, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote."""
        plain = json.loads(text)
        ((family, given),) = plain["model"].items()
        return cls(model=ModelConfig(family, given), image_shape=tuple(plain["image_shape"]))


def source_of(params: PretrainedParams) -> Source:
    """Read the architecture that a model which starts from a run has.

    Raises:
        UsageError: If it is missing.
    """
    if not params.source:
        raise UsageError(
            f"model.pretrained: the architecture of {params.run} is missing; read the "
            "configuration from a space file"
        )
    return Source.from_json(params.source)


def has_own_code(config: ModelConfig) -> bool:
    """Whether a user's own code builds the network, or the one that it starts from."""
    if config.family == "pretrained" and config.params.get("source"):
        params: PretrainedParams = params_of(config)
        return has_own_code(source_of(params).model)
    return config.family == "custom"


@runtime_checkable
class FitsImages(Protocol):
    """A network that takes some of its weights from the training images themselves."""

    def fit_to(self, images: Tensor) -> None:
        """Set such weights, once, before the first step.

        They have to be buffers or frozen parameters, so that checkpoints hold them.

        Args:
            images: Some thousands, normalized, float32, shape (N, C, H, W), on any device.
        """


@runtime_checkable
class StartsFromWeights(Protocol):
    """A network that starts from the weights of an earlier training; see ``initial_weights``."""

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights, once, before the first step."""

    def start_epoch(self, number: int) -> None:
        """Freeze or thaw weights for epoch ``number``, from 1."""

    def lr_shares(self) -> Mapping[str, float]:
        """Return each parameter's share of the learning rate, by name; 1 for those left out."""


def build_model(
    config: ModelConfig, num_classes: int, image_shape: ImageShape = (3, 32, 32)
) -> nn.Module:
    """Build the network that ``config`` names, its weights drawn from torch's global generator.

    Raises:
        UsageError: On an unknown family, or a parameter that the family lacks or refuses.
    """
    params = params_of(config)
    return ARCHITECTURES[config.family].build(params, num_classes, image_shape)


def params_of(config: ModelConfig) -> Any:
    """Return the parameters as the family's dataclass, complete and checked.

    Raises:
        UsageError: As ``build_model``.
    """
    if config.family not in ARCHITECTURES:
        hint = did_you_mean(config.family, ARCHITECTURES)
        known = f"; known are {', '.join(ARCHITECTURES)}"
        raise UsageError(f"model: unknown family {config.family!r}{hint or known}")
    schema = schema_of(ARCHITECTURES[config.family].params)
    return parse(schema, config.params, f"model.{config.family}")
