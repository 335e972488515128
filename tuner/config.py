"""Everything that defines one training, and one search, as frozen dataclasses.

Each is read from plain values by ``from_dict`` and written back by ``to_dict``; the ranges stand in
the annotations, where the search space finds them too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tuner.schema import Bounds, OneOf, Opaque, build, to_plain

Fraction = Annotated[float, Bounds(ge=0, lt=1)]
Positive = Annotated[float, Bounds(gt=0)]
NonNegative = Annotated[float, Bounds(ge=0)]
Count = Annotated[int, Bounds(ge=1)]
Epochs = Annotated[int, Bounds(ge=1, le=10**6)]
LARGEST_BATCH = 4096
SMALLEST_IMAGE, LARGEST_IMAGE = 4, 2048
"""Sides in pixels that images may have: a search keeps all of them in memory."""
IMAGE_SIZES = Bounds(ge=SMALLEST_IMAGE, le=LARGEST_IMAGE)
LEAST_FOLDS, MOST_FOLDS = 2, 10
Precision = Literal["auto", "float32", "bfloat16"]
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "nll", "worst_class"]
"""What trials and ensembles are ranked and chosen by, on validation images: the share that is
right, its mean over the classes, the mean F1 score of the classes, the mean negative
log-likelihood, or the share that is right of the class where it is lowest."""
Cost = Literal["latency_ms", "parameters", "size_mb"]
"""What may be an objective beside the metric, less being better; see ``CostObjective``."""
ClassWeights = Literal["none", "balanced", "sqrt"]
Resize = Literal["auto", "squash", "crop", "pad"]
"""How an image that is no square becomes one; ``auto`` crops where images are far from square."""
Tta = Literal["none", "flip", "flip+shift"]
"""Test-time augmentation: what else of an image is looked at, beside itself."""
Method = Literal["vote", "greedy", "weighted", "soup", "greedy-soup"]
"""How an ensemble's members are chosen and combined."""
AskedMethod = Literal[Method, "auto"]
Diverse = Literal["family", "config", "seed"]
"""What members differ in."""
CompileMode = Literal["auto", "always", "never"]
Target = Literal["wandb", "mlflow"]
"""Programs that are told of trials, beside TensorBoard."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """An architecture by name, with its parameters; ``tuner.models`` knows and checks both."""

    family: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return ``{family: {parameter: value}}``."""
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
class Lion:
    """Steps by the sign of the momentum (Chen et al. 2023).

    It wants 3 to 10 times less learning rate than AdamW, and as many times more weight decay.
    """

    lr: Positive = 2e-4
    """Peak learning rate."""
    beta1: Fraction = 0.9
    """Share of the momentum in a step's direction; the rest is the gradient's."""
    beta2: Fraction = 0.99
    """Decay of the momentum."""
    weight_decay: NonNegative = 0.25
    """Decoupled, times the learning rate; norms and biases are left out of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon:
    """Orthogonal steps for hidden matrices and kernels, by Jordan et al. (2024), beside a partner.

    The partner steps the rest: the first and the last layer, norms, biases and embeddings.
    """

    lr: Positive = 0.02
    """Peak learning rate of the matrices."""
    adamw_lr: Positive = 1e-3
    """Peak learning rate of the rest, with AdamW as partner."""
    momentum: Fraction = 0.95
    """Momentum of the matrices, with Nesterov's look ahead."""
    weight_decay: NonNegative = 0.01
    """Decay: decoupled, times the learning rate, for matrices and AdamW; an L2 share for SGD.

    Norms and biases are left out of it.
    """
    iterations: Annotated[int, Bounds(ge=1, le=10)] = 5
    """Newton-Schulz iterations by which a step is made orthogonal."""
    normalized: bool = False
    """Scale each matrix to the norm sqrt(rows) before every step, instead of its weight decay.

    The rows are a kernel's output channels. It is for networks with a norm after each matrix, where
    the scale of a matrix changes nothing but the size of its steps.
    """
    partner: Literal["adamw", "sgd"] = "adamw"
    """What steps the rest: AdamW, or SGD with Nesterov momentum."""
    sgd_lr: Positive = 0.1
    """Peak learning rate of the rest, with SGD as partner."""
    sgd_momentum: Fraction = 0.85
    """Momentum of the rest, with SGD as partner."""
    bias_factor: Positive = 1.0
    """Times the partner's learning rate, for biases and the shifts of norms."""


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
class Trapezoid:
    """Linear warm-up, the peak held, then a straight line down to zero (Hägele et al. 2024)."""

    warmup: Fraction = 0.05
    """Share of all steps spent warming up."""
    cooldown: Annotated[float, Bounds(ge=0, le=1)] = 0.4
    """Share of the steps after the warm-up spent going down; at 0 the peak is held to the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """What is done to each training batch, in this order; the default is nothing."""

    crop: Annotated[int, Bounds(ge=0)] = 0
    """Pixels of reflect padding before a random crop back to size."""
    flip: bool = False
    """Mirror left to right, half of the images."""
    alternate: bool = False
    """With ``flip``: draw an image's side once, then change it every epoch (Jordan 2024)."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Random operations an image, from Cubuk et al. (2020) or Müller & Hutter (2021)."""
    num_ops: Annotated[int, Bounds(ge=1, le=8)] = 2
    """Operations an image of ``randaugment``; ``trivialaugment`` has one."""
    magnitude: Annotated[int, Bounds(ge=0, le=30)] = 9
    """Strength of the operations of ``randaugment``; ``trivialaugment`` draws its own."""
    brightness: NonNegative = 0.0
    """Multiply all values by a factor in [1 - x, 1 + x]; in random order with the next three."""
    contrast: NonNegative = 0.0
    """Likewise the distance from the image's mean grey."""
    saturation: NonNegative = 0.0
    """Likewise the distance from each pixel's own grey."""
    hue: Annotated[float, Bounds(ge=0, le=0.5)] = 0.0
    """Turn hues by up to this share of the colour circle, either way."""
    cutout: Annotated[int, Bounds(ge=0)] = 0
    """Side in pixels of a square set to the mean colour (DeVries & Taylor 2017)."""
    erasing: Annotated[float, Bounds(ge=0, le=1)] = 0.0
    """Share of the images that have a rectangle set to the mean colour (Zhong et al. 2020)."""
    mixup: NonNegative = 0.0
    """Alpha of the Beta distribution that blends pairs of images (Zhang et al. 2018)."""
    cutmix: NonNegative = 0.0
    """Alpha of the Beta distribution of the pasted area (Yun et al. 2019).

    With ``mixup`` as well, each batch takes one of the two, even odds.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Distill:
    """What a student learns from its teacher's probabilities (Hinton et al. 2015).

    The loss is ``(1 - alpha)`` times that of the labels and ``alpha`` times ``temperature ** 2``
    times the divergence of the student's probabilities from the teacher's, both softened.
    """

    alpha: Annotated[float, Bounds(ge=0, le=1)] = 0.0
    """The teacher's share of the loss. Above 0 it needs a teacher, which ``distill`` gives."""
    temperature: Positive = 4.0
    """By which the logarithms of both probabilities are divided. The more, the more the classes
    count that the teacher takes for improbable."""


OPTIMIZERS: dict[str, type] = {"sgd": Sgd, "adamw": AdamW, "lion": Lion, "muon": Muon}
SCHEDULES: dict[str, type] = {"cosine": Cosine, "one_cycle": OneCycle, "trapezoid": Trapezoid}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """One training: the same config, data, seed and device give the same model."""

    model: Annotated[ModelConfig, Opaque]
    epochs: Epochs
    """Epochs that the schedule spans; a scheduler may stop the trial before."""
    seed: Annotated[int, Bounds(ge=0)] = 0
    batch_size: Count = 128
    micro_batches: Count = 1
    """Parts in which a batch goes through the network, their gradients added up.

    Less memory for the same batch; normalization over a batch sees the parts.
    """
    optimizer: Annotated[Sgd | AdamW | Lion | Muon, OneOf(options=OPTIMIZERS)] = field(
        default_factory=Sgd
    )
    schedule: Annotated[Cosine | OneCycle | Trapezoid, OneOf(options=SCHEDULES)] = field(
        default_factory=Cosine
    )
    clip_norm: NonNegative = 0.0
    """Scale all gradients together down to this norm, where it is larger; 0 turns it off."""
    augment: Augment = field(default_factory=Augment)
    label_smoothing: Fraction = 0.0
    distill: Distill = field(default_factory=Distill)
    class_weights: ClassWeights = "none"
    """What an image counts in the training loss: as much as any other, or by its class, in
    proportion to ``1 / n`` (``balanced``) or ``1 / sqrt(n)``, with ``n`` training images of it.

    Validation is not weighted. The more a class counts above its share, the more often it is
    predicted, and the further are its probabilities above how often it is met.
    """
    logit_adjustment: NonNegative = 0.0
    """``tau`` of the logit-adjusted softmax cross-entropy of Menon et al. (2021, equation 10): the
    training loss is that of the logits plus ``tau * log(share of the class among the training
    images)``; 0 turns it off.

    It is the variant that adjusts the loss, not a finished network. Nothing is added to predict,
    so at 1 the probabilities are those that hold where all classes are equally frequent. On images
    as uneven as the training images they are not calibrated, their NLL is higher for it, and one
    temperature does not mend that. A vote of adjusted and other members averages the two meanings.
    With ``class_weights`` as well, rare classes are favoured twice.
    """
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
        """Return the plain values that ``from_dict`` reads."""
        return to_plain(self)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, slots=True)
class CostObjective:
    """What a network costs, as an objective of a search.

    ``latency_ms`` is the median time of an image in milliseconds, from uint8 images in memory to
    their probabilities, on the trial's device and threads. ``parameters`` is their number and
    ``size_mb`` the size of the weights in megabytes (10^6 bytes).
    """

    cost: Cost
    batch: Annotated[int, Bounds(ge=1, le=LARGEST_BATCH)] = 1
    """Images at a time while the latency is measured."""

    def __str__(self) -> str:
        return self.cost if self.batch == 1 else f"{self.cost} at batch {self.batch}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How a space is searched; the ``search:`` part of a space file."""

    trials: Count = 32
    epochs: Epochs = 27
    """The most epochs that a trial is trained."""
    grace: Count = 3
    """Epochs before a trial may be paused or stopped; the first rung of ASHA."""
    reduction: Annotated[int, Bounds(ge=2)] = 3
    """ASHA keeps the best one of this many at each rung; rungs lie this factor apart."""
    sampler: Literal["tpe", "random", "gp", "cmaes", "grid"] = "tpe"
    """What proposes configurations.

    ``gp`` learns from completed trials alone, so that a scheduler that stops many leaves it little;
    it takes spaces without branches. ``cmaes`` takes spaces of two or more numbers and nothing
    else. ``grid`` tries each configuration of a finite space once, in random order.
    """
    scheduler: Literal["asha", "asha-stop", "hyperband", "median", "none"] = "asha"
    """What ends trials early; see ``tuner.tuning.schedulers``.

    ``asha`` pauses each trial at each rung and promotes the best; ``asha-stop`` stops those that
    are not among the best when they arrive.
    """
    metric: Metric = "accuracy"
    """What trials are ranked, stopped and kept by, and the sampler learns; fixed for a run."""
    patience: NonNegative = 0.0
    """End the search when the next quarter of its budget is expected to improve the best trial by
    less than so many points, a hundredth of the metric's unit; 0 never does."""
    seed: Annotated[int, Bounds(ge=0)] = 0
    purpose: Literal["best", "ensemble"] = field(default="best", metadata={"key": "for"})
    """What trials are promoted for: the best one or, at every second promotion in the last third of
    the budget, what the ensemble gains; that needs ``asha``."""
    costs: tuple[CostObjective, ...] = ()
    """Objectives beside the metric; ``objectives:`` of a space. Fixed for a run."""

    @property
    def objectives(self) -> str:
        """All objectives in words."""
        return ", ".join([self.metric, *map(str, self.costs)])

    @property
    def learns(self) -> bool:
        """Whether the sampler learns from trials."""
        return self.sampler in ("tpe", "gp", "cmaes")


DATA_DIR = Path.home() / ".cache" / "cifar-tune"
"""Where downloaded and decoded images are kept, if nothing else is said."""
AUTO = "auto"
"""Stands for a space that is made for the images, the machine and the time."""
SPACE_KEYS = {
    **{
        name: f"search.{name}"
        for name in ("trials", "epochs", "sampler", "scheduler", "metric", "patience", "seed")
    },
    "purpose": "search.for",
    "data": "dataset",
    "gpus_per_trial": "resources.gpus",
    "cpus_per_trial": "resources.cpus",
}
"""Option of a search -> the key of the space in whose place it is taken."""


def rung_epochs(grace: int, reduction: int, epochs: int) -> list[int]:
    """Return the epochs after which trials are compared: ``grace * reduction ** i`` below the last.

    Args:
        grace: The first of them.
        reduction: The factor between two.
        epochs: The last epoch of a trial, after which there is nothing to decide.
    """
    rungs = []
    while grace < epochs:
        rungs.append(grace)
        grace *= reduction
    return rungs


REFIT_TOP, REFIT_SEEDS = 5, 3
"""Configurations of a refit, and seeds of each, where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefitConfig:
    """What a refit trains anew: the best configurations of an earlier run, each with some seeds.

    Trial ``n`` has configuration ``n % len(configs)``: all are trained with one seed before any is
    with the next.
    """

    run: str
    """Name of the earlier run."""
    trials: tuple[int, ...]
    """Its trials, best first."""
    configs: tuple[TrialConfig, ...]
    """Theirs, with the refit's epochs and seed 0: each trial gets a seed of its own."""
    seeds: Count
    """Trials of each configuration."""
    duplicates: tuple[int, ...] = ()
    """Trials left out, for they have the configuration of a better one."""

    @property
    def num_trials(self) -> int:
        """Number of trials of the refit."""
        return len(self.configs) * self.seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """Limits that a configuration has to keep to be trained; the ``constraints:`` part of a space.

    What exceeds the first two is drawn again before it costs a trial; see ``tuner.models.cost``.
    """

    parameters: Positive | None = None
    """Most parameters of the network; ``None`` sets no limit."""
    flops: Positive | None = None
    """Most operations of one image's forward pass, two for each multiply-add."""
    epoch_seconds: Positive | None = None
    """Longest epoch, as a trial's own worker foresees it from its first steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareConfig:
    """What one trial gets of the cluster; what is left out stays with the more general rule."""

    cpus: Positive | None = None
    gpus: NonNegative | None = None
    """Below 1, several trials share a GPU, each with this share of its memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LargeShareConfig(ShareConfig):
    """What networks get at least that have so many parameters or more."""

    parameters: Positive


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources(ShareConfig):
    """What each trial gets; the ``resources:`` part of a space.

    A family's own share takes the place of the general one.
    """

    by: Mapping[str, ShareConfig] = field(default_factory=dict)
    """Shares by family."""
    large: LargeShareConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, and how they are prepared."""

    source: str = "cifar10"
    """A data set of ``data.known``, or a folder, an archive or a manifest of images."""
    image_size: Annotated[int, IMAGE_SIZES] | None = None
    """Side in pixels; ``None`` keeps the data set's own, 32 for a folder."""
    resize: Resize = "squash"
    """A run records what ``auto`` came to; those of earlier versions squash."""
    black: float | None = None
    white: float | None = None
    """Values that become 0 and 255 of images deeper than 8 bits, as the training images have them;
    ``None`` until they are read, and where none is so deep."""
    val_fraction: Annotated[float, Bounds(gt=0, lt=1)] = 0.1
    """Share of the training images to validate on, where the data set has no such images."""
    folds: Annotated[int, Bounds(ge=LEAST_FOLDS, le=MOST_FOLDS)] | None = None
    """Parts into which all images are divided: a configuration trains as many networks, each on
    all parts but one, on which it is validated; an epoch is one of each. ``None`` is one network,
    which is validated on ``val_fraction`` of the images or those that the data set has for it."""
    skip_broken: bool = False
    """Go on without files that cannot be read."""
    train_limit: Count | None = None
    """Take a stratified part of this many training images; validation images stay the same. With
    folds, it is a part of all images."""
    all_data: bool = False
    """Train on the validation images, too: then they can choose nothing."""
