"""Networks that start from the weights of an earlier training: torchvision's, or those of a run.

This module does not contain the weights: ``tuner.training.initial_weights`` finds them, and
``train`` passes them to ``Pretrained.start_from``. A checkpoint is rebuilt without them.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tuner.errors import UsageError
from tuner.models.catalogue import find_weights
from tuner.models.layers import num_weights
from tuner.models.params import PretrainedParams

TRUNK_SHARE = 0.9
"""A module with at least this share of the weights is not a stage, but contains the stages."""


class Pretrained(nn.Module):
    """A network together with how it is trained further.

    Args:
        network: The network; its last layer with weights is the head.
        params: The policy.
        num_classes: K.
        image_shape: (C, H, W) to which images are converted; a single channel is repeated.
    """

    def __init__(
        self,
        network: nn.Module,
        params: PretrainedParams,
        num_classes: int,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.network = network
        self.head_name, head = last_layer(network)
        if not isinstance(head, nn.Linear | nn.Conv2d) or len(head.weight) != num_classes:
            raise UsageError(
                f"model.pretrained: the last layer, {self.head_name}, is not a linear layer or "
                "convolution that outputs the classes; start from another network"
            )
        self._channels, *self._size = image_shape
        self._is_vit = params.name.startswith("vit")
        self._layer_decay = params.layer_decay
        self._frozen_epochs: float = {
            "full": 0,
            "freeze": params.freeze_epochs,
            "linear_probe": math.inf,
        }[params.policy]
        self._is_frozen = False
        # Parameters that the architecture itself never trains stay frozen when the rest thaws.
        self._backbone = tuple(
            name
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and not name.startswith(f"{self.head_name}.")
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of normalized images (N, C, H, W) of any size."""
        if images.shape[1] != self._channels:
            images = images.expand(-1, self._channels, -1, -1)
        if [*images.shape[2:]] != self._size:
            images = F.interpolate(images, size=self._size, mode="bilinear", antialias=True)
        return self.network(images)  # type: ignore[no-any-return]

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights of an earlier training, and keep the head if they contain none.

        Raises:
            UsageError: If they are of another network, or of another image size that matters.
        """
        if self._is_vit:
            from torchvision.models.vision_transformer import interpolate_embeddings

            vit: Any = self.network
            tensors = interpolate_embeddings(vit.image_size, vit.patch_size, dict(tensors))
        head = f"{self.head_name}."
        own = {k: v for k, v in self.network.state_dict().items() if k.startswith(head)}
        try:
            # Each module renames its tensors that a file stores under an older name.
            self.network.load_state_dict({**own, **tensors})
        except RuntimeError as error:
            problem = str(error).splitlines()[1].strip()[:200]
            raise UsageError(
                f"model.pretrained: the weights do not fit ({problem}); leave out image_size, or "
                "take weights of this network"
            ) from error

    def start_epoch(self, number: int) -> None:
        """Freeze or unfreeze all but the head for epoch ``number``, from 1, as the policy says."""
        self._is_frozen = number <= self._frozen_epochs
        for name in self._backbone:
            self.network.get_parameter(name).requires_grad_(not self._is_frozen)

    def train(self, mode: bool = True) -> "Pretrained":
        """Set the mode; frozen modules stay in evaluation mode, which keeps their statistics."""
        super().train(mode)
        if self._is_frozen:
            self.network.eval()
            self.network.get_submodule(self.head_name).train(mode)
        return self

    def lr_shares(self) -> dict[str, float]:
        """Return each parameter's share of the learning rate: decay ** stages from the head.

        Layer-wise decay as in BEiT (Bao et al. 2022, arXiv 2106.08254).
        """
        stages = [*stages_of(self.network, self.head_name), []]
        return {
            f"network.{name}": self._layer_decay**depth
            for depth, names in enumerate(reversed(stages))
            for name in names
        }


def stages_of(network: nn.Module, head_name: str) -> list[list[str]]:
    """Divide all parameters except the head's into stages, in the order of the forward pass.

    A stage is a child of the network or, if one child contains nearly everything, a child of that
    one, and so on: a ResNet's stages, a ViT's layers. Norms belong to the stage before them. The
    order is that of definition, which is that of the forward pass in torchvision and here.

    Returns:
        The names of each stage's parameters.
    """
    return [list(stage) for stage in _stages(network, "", head_name)]


def _stages(module: nn.Module, prefix: str, head_name: str) -> list[dict[str, nn.Parameter]]:
    children = {f"{prefix}{name}": child for name, child in module.named_children()}
    children.pop(head_name, None)
    total = sum(num_weights(c) for n, c in children.items() if not head_name.startswith(f"{n}."))
    stages: list[dict[str, nn.Parameter]] = []
    for name, child in children.items():
        holds_head = head_name.startswith(f"{name}.")
        is_trunk = num_weights(child) >= TRUNK_SHARE * total and any(True for _ in child.children())
        whole = {f"{name}.{own}": parameter for own, parameter in child.named_parameters()}
        parts = _stages(child, f"{name}.", head_name) if holds_head or is_trunk else [whole]
        for part in filter(None, parts):
            if stages and all(parameter.ndim <= 1 for parameter in part.values()):
                stages[-1] |= part
            else:
                stages.append(part)
    own = {f"{prefix}{name}": p for name, p in module.named_parameters(recurse=False)}
    if own:
        stages[:1] = [own | (stages[0] if stages else {})]
    return stages


def last_layer(network: nn.Module) -> tuple[str, nn.Module]:
    """Return the last module that has its own weights, in the order of definition."""
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    return layers[-1] if layers else ("", network)


def build_torchvision(params: PretrainedParams, num_classes: int) -> Pretrained:
    """Build a torchvision network with a head for K classes and random weights."""
    from torchvision.models import get_model

    name = params.name
    size = params.image_size or find_weights(name, params.weights).transforms().crop_size[0]
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # As with weights: the network converts the usual normalization of images to its own.
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    elif name.startswith("vit"):
        options = {"image_size": size}
    elif name.startswith("maxvit"):
        options = {"input_size": (size, size)}
    with _NumbersOnCpu() if name.startswith("regnet") else nullcontext():
        network = get_model(name, weights=None, num_classes=num_classes, **options)
    return Pretrained(network, params, num_classes, (3, size, size))


class _NumbersOnCpu(TorchFunctionMode):
    """Lets a RegNet, which computes its widths with tensors, be built on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        device = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **{**(kwargs or {}), **device})
