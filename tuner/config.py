"""Everything that defines one training, and one search, as frozen dataclasses.

Each is read from plain values by ``from_dict`` and written back by ``to_dict``; the ranges stand in
the annotations, where the search space finds them too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from tuner.schema import Bounds, OneOf, Open, build, to_plain

Fraction = Annotated[float, Bounds(ge=0, lt=1)]
Positive = Annotated[float, Bounds(gt=0)]
NonNegative = Annotated[float, Bounds(ge=0)]
Count = Annotated[int, Bounds(ge=1)]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """An architecture by name, with its parameters; ``tuner.models`` knows and checks both."""

    family: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Give ``{family: {parameter: value}}``."""
        return {self.family: dict(self.params)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sgd:
    """Stochastic gradient descent with momentum."""

    lr: Positive = 0.1
    """Peak learning rate."""
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: NonNegative = 5e-4
    """L2 share; norms and biases are left out of it."""

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError(
                "nesterov needs momentum above 0; raise momentum or write nesterov: false"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    lr: Positive = 1e-3
    """Peak learning rate."""
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    weight_decay: NonNegative = 0.05
    """Decoupled, times the learning rate; norms and biases are left out of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """Linear warm-up, then half a cosine down to zero (Loshchilov & Hutter 2017)."""

    warmup: Fraction = 0.05
    """Share of all steps spent warming up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycle:
    """One cosine up and one down, from ``1/div`` of the peak to nearly nothing (Smith 2018)."""

    warmup: Fraction = 0.3
    """Share of all steps spent going up."""
    div: Annotated[float, Bounds(ge=1)] = 25.0
    """The first learning rate is the peak divided by this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """What is done to each training batch, in this order; the default is nothing."""

    crop: Annotated[int, Bounds(ge=0)] = 0
    """Pixels of reflect padding before a random crop back to size."""
    flip: bool = False
    """Mirror left to right, half of the images."""
    cutout: Annotated[int, Bounds(ge=0)] = 0
    """Side in pixels of a square set to the mean colour (DeVries & Taylor 2017)."""
    mixup: NonNegative = 0.0
    """Alpha of the Beta distribution that blends pairs of images (Zhang et al. 2018)."""
    cutmix: NonNegative = 0.0
    """Alpha of the Beta distribution of the pasted area (Yun et al. 2019).

    With ``mixup`` as well, each batch takes one of the two, even odds.
    """


OPTIMIZERS: dict[str, type] = {"sgd": Sgd, "adamw": AdamW}
SCHEDULES: dict[str, type] = {"cosine": Cosine, "one_cycle": OneCycle}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """One training: the same config, data, seed and device give the same model."""

    model: Annotated[ModelConfig, Open]
    epochs: Count
    """Epochs that the schedule spans; a scheduler may stop the trial before."""
    seed: Annotated[int, Bounds(ge=0)] = 0
    batch_size: Count = 128
    optimizer: Annotated[Sgd | AdamW, OneOf(options=OPTIMIZERS)] = field(default_factory=Sgd)
    schedule: Annotated[Cosine | OneCycle, OneOf(options=SCHEDULES)] = field(default_factory=Cosine)
    augment: Augment = field(default_factory=Augment)
    label_smoothing: Fraction = 0.0
    ema_decay: Fraction = 0.99
    """Decay a step of the weight average that is validated and saved; 0 turns it off."""
    precision: Precision = "auto"
    """``auto`` is bfloat16 where the device is fast at it, else float32."""

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Build a config from plain values.

        Raises:
            UsageError: On an unknown key, a wrong type or a value out of range.
        """
        return build(cls, plain)

    def to_dict(self) -> dict[str, Any]:
        """Give the plain values that ``from_dict`` reads."""
        return to_plain(self)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How a space is searched; the ``search:`` part of a space file."""

    trials: Count = 32
    epochs: Count = 27
    """The most epochs that a trial is trained."""
    grace: Count = 3
    """Epochs before ASHA may stop a trial; its first rung."""
    reduction: Annotated[int, Bounds(ge=2)] = 3
    """ASHA keeps the best one of this many at each rung; rungs lie this factor apart."""
    sampler: Literal["tpe", "random"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    seed: Annotated[int, Bounds(ge=0)] = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, and how they are prepared."""

    source: str = "cifar10"
    """``cifar10``, ``cifar100``, ``digits``, or a folder with ``train/<class>/*``, ``test/...``."""
    image_size: Annotated[int, Bounds(ge=4)] | None = None
    """Side in pixels; ``None`` keeps the data set's own, 32 for a folder."""
    train_limit: Count | None = None
    """Take a stratified part of this many training images; validation images stay the same."""
