"""The searchable parameters of every family of networks, apart from torch: spaces need no more."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tuner.config import Fraction
from tuner.models.catalogue import why_not_pretrained
from tuner.schema import Bounds, FreeForm


@dataclass(frozen=True, kw_only=True, slots=True)
class CnnParams:
    """Parameters of ``cnn``; the defaults give 289,000 weights on CIFAR-10."""

    stages: Annotated[int, Bounds(ge=1, le=6)] = 3
    """Between two stages the side is halved, while at least 2 pixels remain."""
    blocks: Annotated[int, Bounds(ge=1, le=16)] = 2
    """Blocks a stage: each is convolution, norm and activation."""
    width: Annotated[int, Bounds(ge=8, le=512)] = 32
    """Channels of the first stage, rounded to a multiple of 8."""
    width_growth: Annotated[float, Bounds(ge=1, le=4)] = 2.0
    """Each stage has this many times the channels of the one before, rounded likewise."""
    kernel: Literal[3, 5, 7] = 3
    """Side of the convolutions in pixels."""
    convolution: Literal["standard", "separable"] = "standard"
    """``separable`` is one kernel a channel, then 1 x 1 across channels (Howard et al. 2017)."""
    norm: Literal["batch", "group", "layer", "none"] = "batch"
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "mish"] = "relu"
    pooling: Literal["max", "average", "stride"] = "max"
    """How the side is halved; ``stride`` lets a stage's first convolution do it."""
    residual: bool = False
    """Add each block's input to its output, through a 1 x 1 convolution where shapes differ."""
    squeeze_excitation: bool = False
    """Let each block weigh its channels by their means (Hu et al. 2018)."""
    stochastic_depth: Fraction = 0.0
    """Share of the images that skip the last block while training, growing linearly from the first
    (Huang et al. 2016); needs ``residual``."""
    dropout: Fraction = 0.0
    """Share of the features that the classifier does not see while training."""
    head: Literal["average", "max", "hidden"] = "average"
    """What the classifier reads: the mean of each channel, its maximum, or a hidden layer's
    features of the mean."""

    def __post_init__(self) -> None:
        if self.stochastic_depth and not self.residual:
            raise ValueError(
                "stochastic_depth needs residual: true; add it or write stochastic_depth: 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetParams:
    """Parameters of ``resnet``; the defaults give the ResNet-18 of 11.2 million weights."""

    depth: Literal[10, 18, 34, 20, 32, 44, 56] = 18
    """10, 18 and 34 are the wide nets of four stages; 20 to 56 the thin CIFAR nets of three."""
    width_factor: Annotated[float, Bounds(ge=0.125, le=4)] = 1.0
    """Times the paper's channels, which begin at 64 or 16; rounded to a multiple of 8."""
    preactivation: bool = False
    """Norm and activation before each convolution and none on the sum (He et al. 2016b)."""
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0
    """Share of the features that the classifier does not see while training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WideResNetParams:
    """Parameters of ``wide_resnet``; the defaults give the WRN-16-4 of 2.7 million weights."""

    depth: Literal[10, 16, 22, 28, 34, 40] = 16
    """Layers, 6 n + 4 for n blocks a stage."""
    widen_factor: Annotated[int, Bounds(ge=1, le=16)] = 4
    """Times the channels of the thin net, which are 16, 32 and 64."""
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0
    """Share of the features dropped between a block's two convolutions while training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedNetParams:
    """Parameters of ``speednet``; the defaults give 2 million weights on CIFAR-10."""

    whitening_kernel: Literal[2, 3] = 2
    """Side in pixels of the patches that the frozen first layer decorrelates."""
    stages: Annotated[int, Bounds(ge=1, le=5)] = 3
    """Each begins by halving the side, while at least 2 pixels remain."""
    convolutions: Literal[2, 3] = 2
    """Convolutions a stage; the last two of three have a shortcut around them."""
    width: Annotated[int, Bounds(ge=8, le=512)] = 64
    """Channels of the first stage, rounded to a multiple of 8."""
    widening: Annotated[float, Bounds(ge=1, le=8)] = 4.0
    """Each later stage has this many times the channels of the first, rounded likewise."""
    logit_scale: Annotated[float, Bounds(gt=0, le=1)] = 0.11
    """Times the classifier's output: the first loss is small, and the last sharpens late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvNeXtParams:
    """Parameters of ``convnext``; the defaults give 2.3 million weights on CIFAR-10."""

    patch: Literal[1, 2, 4] = 2
    """Side in pixels of the patches that the stem reads; 4 is the paper's, for large images."""
    stages: Annotated[int, Bounds(ge=1, le=4)] = 3
    """Each has twice the channels of the one before on half the side, while 2 pixels remain."""
    blocks: Annotated[int, Bounds(ge=1, le=12)] = 3
    """Blocks a stage."""
    width: Annotated[int, Bounds(ge=8, le=256)] = 64
    """Channels of the first stage, rounded to a multiple of 8."""
    kernel: Literal[3, 5, 7] = 7
    """Side in pixels of the depthwise convolutions."""
    layer_scale: Annotated[float, Bounds(gt=0, le=1)] = 0.1
    """What each branch is first scaled by. The paper's 1e-6 is for hundreds of epochs; 0.1 is what
    Touvron et al. (2021, "CaiT") give nets of up to 18 layers."""
    stochastic_depth: Fraction = 0.0
    """Share of the images that skip the last block while training, growing linearly from the first
    (Huang et al. 2016)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTParams:
    """Parameters of ``vit``; the defaults give 2.7 million weights on CIFAR-10."""

    patch: Literal[2, 4, 8] = 4
    """Side in pixels of the patches; halving it makes four times as many tokens."""
    layers: Annotated[int, Bounds(ge=1, le=16)] = 6
    """Each is attention, then a perceptron."""
    width: Annotated[int, Bounds(ge=16, le=768)] = 192
    """Channels of a token, rounded to a multiple of ``head_width``."""
    head_width: Literal[16, 32, 64] = 32
    """Channels of an attention head."""
    mlp_ratio: Annotated[float, Bounds(ge=1, le=8)] = 4.0
    """The perceptron's hidden layer has this many times the channels of a token."""
    pooling: Literal["mean", "class"] = "mean"
    """What the classifier reads: the mean of all tokens, or a token of its own."""
    positions: Literal["sincos", "learned"] = "sincos"
    """How a token knows its place: fixed waves in two directions, or learned vectors. Beyer et al.
    (2022) find fixed ones, and the mean, no worse."""
    dropout: Fraction = 0.0
    """Share dropped of the tokens' features and of what each layer adds, while training."""
    stochastic_depth: Fraction = 0.0
    """Share of the images that skip the last layer while training, growing linearly from the first
    (Huang et al. 2016)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomParams:
    """A network of one's own: ``name`` in the file ``path``, called with ``params``.

    It is called as ``name(num_classes=K, image_shape=(C, H, W), **params)`` and gives a module that
    maps normalized images (N, C, H, W) to logits (N, K).
    """

    path: str
    """A Python file, relative to the space; it may import installed packages, not its neighbours.
    Of a configuration that holds ``source``, it is a mere name."""
    name: str
    params: Annotated[Mapping[str, Any], FreeForm()] = field(default_factory=dict)
    """Arguments by name: plain values, or axes to search."""
    source: str = ""
    """The file's text, put there when the space is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedParams:
    """A torchvision classification model by its ``name``, or a trial of an earlier ``run``.

    The head, its last layer, is a new one; from a run with the same classes it is kept.
    """

    name: str = ""
    """Such as ``resnet18``, ``efficientnet_b0``, ``convnext_tiny``, ``vit_b_16``."""
    weights: str = "DEFAULT"
    """Weights of ``name``: torchvision's word for them, such as ``IMAGENET1K_V1``."""
    run: str = ""
    """Name or folder of a run."""
    trial: Annotated[int, Bounds(ge=0)] | None = None
    """Trial of ``run``; left out, its best one when the space is read."""
    image_size: Annotated[int, Bounds(ge=8)] | None = None
    """Pixels a side to which images are resized on the device; ``None`` is what the weights were
    made for."""
    policy: Literal["full", "linear_probe", "freeze"] = "full"
    """What is trained: everything, the head alone, or the head alone for ``freeze_epochs``."""
    freeze_epochs: Annotated[int, Bounds(ge=1)] = 1
    layer_decay: Annotated[float, Bounds(gt=0, le=1)] = 1.0
    """Each stage before the head learns at this share of the rate of the stage after it."""
    source: str = ""
    """The architecture of ``run``'s trial, as JSON, put there when the space is read."""
    sha256: str = ""
    """SHA-256 of its checkpoint, likewise."""

    def __post_init__(self) -> None:
        if bool(self.name) == bool(self.run):
            raise ValueError("give either name, of a torchvision model, or run, of an earlier run")
        if self.name and self.trial is not None:
            raise ValueError("trial is one of a run; give run instead of name, or remove it")
        if self.name and (problem := why_not_pretrained(self.name, self.weights, self.image_size)):
            raise ValueError(problem)
