"""A convolutional network as people write it by hand, with the usual choices as parameters."""

from torch import Tensor, nn

from tuner.models.layers import (
    SqueezeExcitation,
    StochasticDepth,
    can_halve,
    drop_rates,
    initialize,
    norm_layer,
    round_width,
)
from tuner.models.params import CnnParams

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}
POOLINGS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class Cnn(nn.Module):
    """Stages of blocks, then pooling over all pixels and a linear classifier.

    Args:
        params: The choices.
        num_classes: K.
        image_shape: (C, H, W).
    """

    def __init__(
        self, params: CnnParams, num_classes: int, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        channels, *sides = image_shape
        side = min(sides)
        layers: list[nn.Module] = []
        rates = iter(drop_rates(params.stochastic_depth, params.stages * params.blocks))
        for stage in range(params.stages):
            halve = stage > 0 and can_halve(side)
            if halve:
                side //= 2
                if params.pooling != "stride":
                    layers.append(POOLINGS[params.pooling](2))
            width = round_width(params.width * params.width_growth**stage)
            for block in range(params.blocks):
                strided = halve and block == 0 and params.pooling == "stride"
                layers.append(Block(params, channels, width, 2 if strided else 1, next(rates)))
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveMaxPool2d(1) if params.head == "max" else nn.AdaptiveAvgPool2d(1)
        self.hidden = (
            nn.Sequential(nn.Linear(channels, channels), ACTIVATIONS[params.activation]())
            if params.head == "hidden"
            else nn.Identity()
        )
        self.classifier = nn.Sequential(
            nn.Dropout(params.dropout), nn.Linear(channels, num_classes)
        )
        initialize(self)
        for module in self.modules():
            if isinstance(module, Block):
                module.start_as_identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (N, K), for normalized images, shape (N, C, H, W)."""
        pooled = self.pool(self.features(images)).flatten(1)
        return self.classifier(self.hidden(pooled))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Convolution and norm, the input added if ``params.residual``, then the activation."""

    def __init__(
        self,
        params: CnnParams,
        channels_in: int,
        channels_out: int,
        stride: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        bias = params.norm == "none"
        self.conv = convolution(params, channels_in, channels_out, stride)
        self.norm = norm_layer(params.norm, channels_out)
        self.excitation = (
            SqueezeExcitation(channels_out) if params.squeeze_excitation else nn.Identity()
        )
        self.activation = ACTIVATIONS[params.activation]()
        self.drop = StochasticDepth(drop_rate)
        self.shortcut: nn.Module | None = None
        if params.residual and stride == 1 and channels_in == channels_out:
            self.shortcut = nn.Identity()
        elif params.residual:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=bias),
                norm_layer(params.norm, channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        y = self.excitation(self.norm(self.conv(x)))
        if self.shortcut is not None:
            y = self.drop(y) + self.shortcut(x)
        return self.activation(y)  # type: ignore[no-any-return]

    def start_as_identity(self) -> None:
        """Zero the branch next to an identity, so that depth does not amplify the signal at first.

        Goyal et al. (2017), section 5.1, for the norm; Zhang et al. (2019), "Fixup", without one.
        """
        if isinstance(self.shortcut, nn.Identity):
            last = self.norm
            if isinstance(self.norm, nn.Identity):
                last = self.conv[-1] if isinstance(self.conv, nn.Sequential) else self.conv
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]


def convolution(
    params: CnnParams, channels_in: int, channels_out: int, stride: int
) -> nn.Conv2d | nn.Sequential:
    """Return the convolution of a block, standard or separable."""
    bias = params.norm == "none"
    side, padding = params.kernel, params.kernel // 2
    if params.convolution == "standard":
        return nn.Conv2d(channels_in, channels_out, side, stride, padding, bias=bias)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, side, stride, padding, groups=channels_in, bias=False),
        nn.Conv2d(channels_in, channels_out, 1, bias=bias),
    )
