"""The searchable parameters of every family of networks, without torch: spaces need only these."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tuner.config import Amount, Fraction
from tuner.models.catalogue import why_not_pretrained
from tuner.schema import Bounds, FreeForm


@dataclass(frozen=True, kw_only=True, slots=True)
class CnnParams:
    """Parameters of ``cnn``; the defaults give 289,000 weights on CIFAR-10."""

    stages: Annotated[int, Bounds(ge=1, le=6)] = 3
    """Number of stages; the side is halved between two, as long as at least 2 pixels remain."""
    blocks: Annotated[int, Bounds(ge=1, le=16)] = 2
    """Blocks per stage, each with convolution, norm and activation."""
    width: Annotated[int, Bounds(ge=8, le=512)] = 32
    """Channels of the first stage, rounded to a multiple of 8."""
    width_growth: Annotated[float, Bounds(ge=1, le=4)] = 2.0
    """Ratio of a stage's channels to those of the previous stage, rounded likewise."""
    kernel: Literal[3, 5, 7] = 3
    """Side of the convolutions in pixels."""
    convolution: Literal["standard", "separable"] = "standard"
    """``separable`` is one kernel per channel, then 1 x 1 across channels (Howard et al. 2017)."""
    norm: Literal["batch", "group", "layer", "none"] = "batch"
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "mish"] = "relu"
    pooling: Literal["max", "average", "stride"] = "max"
    """How the side is halved; ``stride`` lets a stage's first convolution do it."""
    residual: bool = False
    """Whether to add each block's input to its output, by a 1 x 1 convolution if shapes differ."""
    squeeze_excitation: bool = False
    """Whether each block weights its channels by their means (Hu et al. 2018)."""
    stochastic_depth: Fraction = 0.0
    """Share of the images that skip the last block while training, growing linearly from the first
    (Huang et al. 2016); needs ``residual``."""
    dropout: Fraction = 0.0
    """Share of the features that the classifier does not see while training."""
    head: Literal["average", "max", "hidden"] = "average"
    """Input of the classifier: the mean of each channel, its maximum, or a hidden layer's features
    of the mean."""

    def __post_init__(self) -> None:
        if self.stochastic_depth and not self.residual:
            raise ValueError(
                "stochastic_depth needs residual: true; add it or write stochastic_depth: 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetParams:
    """Parameters of ``resnet``; the defaults give the ResNet-18 with 11.2 million weights."""

    depth: Literal[10, 18, 34, 20, 32, 44, 56] = 18
    """10, 18 and 34 are the wide nets with four stages; 20 to 56 the thin CIFAR nets with three."""
    width_factor: Annotated[float, Bounds(ge=0.125, le=4)] = 1.0
    """Ratio to the paper's channels, which begin at 64 or 16; rounded to a multiple of 8."""
    preactivation: bool = False
    """Whether norm and activation precede each convolution, not on the sum (He et al. 2016b)."""
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0
    """Share of the features that the classifier does not see while training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WideResNetParams:
    """Parameters of ``wide_resnet``; the defaults give the WRN-16-4 with 2.7 million weights."""

    depth: Literal[10, 16, 22, 28, 34, 40] = 16
    """Number of layers, 6 n + 4 for n blocks per stage."""
    widen_factor: Annotated[int, Bounds(ge=1, le=16)] = 4
    """Ratio to the channels of the thin net, which are 16, 32 and 64."""
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0
    """Share of the features dropped between a block's two convolutions while training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedNetParams:
    """Parameters of ``speednet``; the defaults give 2 million weights on CIFAR-10."""

    whitening_kernel: Literal[2, 3] = 2
    """Side in pixels of the patches that the frozen first layer decorrelates."""
    stages: Annotated[int, Bounds(ge=1, le=5)] = 3
    """Number of stages; each starts by halving the side, as long as at least 2 pixels remain."""
    convolutions: Literal[2, 3] = 2
    """Convolutions per stage; the last two of three have a shortcut around them."""
    width: Annotated[int, Bounds(ge=8, le=512)] = 64
    """Channels of the first stage, rounded to a multiple of 8."""
    widening: Annotated[float, Bounds(ge=1, le=8)] = 4.0
    """Ratio of each later stage's channels to those of the first, rounded likewise."""
    logit_scale: Annotated[float, Bounds(gt=0, le=1)] = 0.11
    """Scale of the classifier's output: the first loss is small, and the last sharpens late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvNeXtParams:
    """Parameters of ``convnext``; the defaults give 2.3 million weights on CIFAR-10."""

    patch: Literal[1, 2, 4] = 2
    """Side in pixels of the patches that the stem reads; 4 is the paper's, for large images."""
    stages: Annotated[int, Bounds(ge=1, le=4)] = 3
    """Number of stages, each with twice the channels on half the side, while 2 pixels remain."""
    blocks: Annotated[int, Bounds(ge=1, le=12)] = 3
    """Blocks per stage."""
    width: Annotated[int, Bounds(ge=8, le=256)] = 64
    """Channels of the first stage, rounded to a multiple of 8."""
    kernel: Literal[3, 5, 7] = 7
    """Side in pixels of the depthwise convolutions."""
    layer_scale: Annotated[float, Bounds(gt=0, le=1)] = 0.1
    """Initial scale of each branch. The paper's 1e-6 is for hundreds of epochs; Touvron et al.
    (2021, "CaiT") use 0.1 for nets of up to 18 layers."""
    stochastic_depth: Fraction = 0.0
    """Share of the images that skip the last block while training, growing linearly from the first
    (Huang et al. 2016)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTParams:
    """Parameters of ``vit``; the defaults give 2.7 million weights on CIFAR-10."""

    patch: Literal[2, 4, 8] = 4
    """Side in pixels of the patches; halving it makes four times as many tokens."""
    layers: Annotated[int, Bounds(ge=1, le=16)] = 6
    """Number of layers, each of them attention followed by an MLP."""
    width: Annotated[int, Bounds(ge=16, le=768)] = 192
    """Channels of a token, rounded to a multiple of ``head_width``."""
    head_width: Literal[16, 32, 64] = 32
    """Channels of an attention head."""
    mlp_ratio: Annotated[float, Bounds(ge=1, le=8)] = 4.0
    """Ratio of the MLP's hidden layer to the channels of a token."""
    pooling: Literal["mean", "class"] = "mean"
    """Input of the classifier: the mean of all tokens, or a class token."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Encoding of a token's position: fixed waves in two directions, or learned vectors. Beyer et
    al. (2022) find fixed ones, and the mean, no worse."""
    dropout: Fraction = 0.0
    """Share of the tokens' features, and of what each layer adds, that is dropped in training."""
    stochastic_depth: Fraction = 0.0
    """Share of the images that skip the last layer while training, growing linearly from the first
    (Huang et al. 2016)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomParams:
    """A custom network: ``name`` in the file ``path``, called with ``params``.

    It is called as ``name(num_classes=K, image_shape=(C, H, W), **params)`` and returns a module
    that maps normalized images (N, C, H, W) to logits (N, K).
    """

    path: str
    """A Python file, relative to the space; it may import installed packages, not files next to it.
    In a configuration with ``source``, it is only a name."""
    name: str
    params: Annotated[Mapping[str, Any], FreeForm()] = field(default_factory=dict)
    """Arguments by name: plain values, or axes to search."""
    source: str = ""
    """The file's text, filled in when the space is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedParams:
    """A torchvision classification model by its ``name``, or a trial of an earlier ``run``.

    The head, its last layer, is replaced, except from a run with the same classes.
    """

    name: str = ""
    """Such as ``resnet18``, ``efficientnet_b0``, ``convnext_tiny``, ``vit_b_16``."""
    weights: str = "DEFAULT"
    """Weights of ``name``, as torchvision names them, such as ``IMAGENET1K_V1``."""
    run: str = ""
    """Name or folder of a run."""
    trial: Amount | None = None
    """Trial of ``run``; by default its best one when the space is read."""
    image_size: Annotated[int, Bounds(ge=8)] | None = None
    """Side in pixels to which images are resized on the device; ``None`` is the size that the
    weights were made for."""
    policy: Literal["full", "linear_probe", "freeze"] = "full"
    """What is trained: everything, only the head, or only the head for ``freeze_epochs``."""
    freeze_epochs: Annotated[int, Bounds(ge=1)] = 1
    layer_decay: Annotated[float, Bounds(gt=0, le=1)] = 1.0
    """Ratio of each stage's learning rate to that of the next stage, before the head."""
    source: str = ""
    """The architecture of ``run``'s trial, as JSON, filled in when the space is read."""
    sha256: str = ""
    """SHA-256 of its checkpoint, likewise."""

    def __post_init__(self) -> None:
        if bool(self.name) == bool(self.run):
            raise ValueError("give either name, of a torchvision model, or run, of an earlier run")
        if self.name and self.trial is not None:
            raise ValueError("trial is one of a run; give run instead of name, or remove it")
        if self.name and (problem := why_not_pretrained(self.name, self.weights, self.image_size)):
            raise ValueError(problem)
