"""Builds networks from their configuration."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tuner.config import ModelConfig
from tuner.errors import UsageError
from tuner.models.cnn import Cnn
from tuner.models.convnext import ConvNeXt
from tuner.models.custom import build_custom
from tuner.models.families import ImageShape, params_of, source_of
from tuner.models.folded import FoldedNetwork
from tuner.models.params import PretrainedParams
from tuner.models.pretrained import Pretrained, build_torchvision
from tuner.models.resnet import ResNet
from tuner.models.speednet import SpeedNet
from tuner.models.vit import ViT
from tuner.models.wide_resnet import WideResNet


def build_model(
    config: ModelConfig, num_classes: int, image_shape: ImageShape = (3, 32, 32)
) -> nn.Module:
    """Build the network in ``config``, with weights drawn from torch's global generator.

    Raises:
        UsageError: On an unknown family, or a parameter that the family lacks or refuses.
    """
    params = params_of(config)
    return BUILDERS[config.family](params, num_classes, image_shape)


def build_folded(
    config: ModelConfig, num_classes: int, image_shape: ImageShape, folds: int
) -> nn.Module:
    """Build the network in ``config``, or with folds a ``FoldedNetwork`` with one for each.

    Raises:
        UsageError: As ``build_model``.
    """
    networks = [build_model(config, num_classes, image_shape) for _ in range(folds or 1)]
    return FoldedNetwork(networks) if folds else networks[0]


def _build_pretrained(
    params: PretrainedParams, num_classes: int, image_shape: ImageShape
) -> nn.Module:
    """Build the network of ``params`` with random weights.

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


BUILDERS: dict[str, Callable[[Any, int, ImageShape], nn.Module]] = {
    "cnn": Cnn,
    "resnet": ResNet,
    "wide_resnet": WideResNet,
    "speednet": SpeedNet,
    "convnext": ConvNeXt,
    "vit": ViT,
    "custom": build_custom,
    "pretrained": _build_pretrained,
}
"""Family -> function that builds its network from the parameters, the number of classes K and the
shape of an image. The network maps normalized images (N, C, H, W) to logits (N, K)."""


@runtime_checkable
class FitsImages(Protocol):
    """A network that computes some of its weights from the training images."""

    def fit_to(self, images: Tensor) -> None:
        """Set these weights, once, before the first step.

        They must be buffers or frozen parameters, so that checkpoints contain them.

        Args:
            images: A few thousand, normalized, float32, shape (N, C, H, W), on any device.
        """


@runtime_checkable
class StartsFromWeights(Protocol):
    """A network that starts from the weights of an earlier training; see ``initial_weights``."""

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights, once, before the first step."""

    def start_epoch(self, number: int) -> None:
        """Freeze or unfreeze weights for epoch ``number``, from 1."""

    def lr_shares(self) -> Mapping[str, float]:
        """Return each parameter's share of the learning rate, by name; 1 if it is left out."""
