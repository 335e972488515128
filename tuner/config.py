"""Everything that defines a training or a search, as frozen dataclasses.

``from_dict`` builds them from plain values and ``to_dict`` converts them back. The ranges are in
the annotations, where the search space also finds them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tuner.schema import Bounds, OneOf, Opaque, build, to_plain

Fraction = Annotated[float, Bounds(ge=0, lt=1)]
Share = Annotated[float, Bounds(ge=0, le=1)]
Positive = Annotated[float, Bounds(gt=0)]
NonNegative = Annotated[float, Bounds(ge=0)]
Count = Annotated[int, Bounds(ge=1)]
Amount = Annotated[int, Bounds(ge=0)]
Epochs = Annotated[int, Bounds(ge=1, le=10**6)]
LARGEST_BATCH = 4096
SMALLEST_IMAGE, LARGEST_IMAGE = 4, 2048
"""Limits of an image's side in pixels: a search keeps all images in memory."""
IMAGE_SIZES = Bounds(ge=SMALLEST_IMAGE, le=LARGEST_IMAGE)
LEAST_FOLDS, MOST_FOLDS = 2, 10
Precision = Literal["auto", "float32", "bfloat16"]
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "nll", "worst_class"]
"""Metric that ranks and chooses trials and ensembles, on validation images: the accuracy, its mean
over the classes, the mean F1 score of the classes, the mean negative log-likelihood, or the
accuracy of the class where it is lowest."""
Cost = Literal["latency_ms", "parameters", "size_mb"]
"""Possible objectives in addition to the metric, lower being better; see ``CostObjective``."""
ClassWeights = Literal["none", "balanced", "sqrt"]
Resize = Literal["auto", "squash", "crop", "pad"]
"""How an image becomes square; ``auto`` crops if most images are far from square."""
Tta = Literal["none", "flip", "flip+shift"]
"""Test-time augmentation: which views of an image are predicted in addition to the image."""
Method = Literal["vote", "greedy", "weighted", "soup", "greedy-soup"]
"""How an ensemble's members are chosen and combined."""
AskedMethod = Literal[Method, "auto"]
Diverse = Literal["family", "config", "seed"]
"""Property in which members must differ."""
CompileMode = Literal["auto", "always", "never"]
Target = Literal["wandb", "mlflow"]
"""Programs that record trials in addition to TensorBoard."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """An architecture by name, with its parameters; ``tuner.models`` checks both."""

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
    """L2 penalty; not applied to norms and biases."""

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
    """Decoupled, times the learning rate; not applied to norms and biases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lion:
    """Steps in the direction of the momentum's sign (Chen et al. 2023).

    It needs a 3 to 10 times lower learning rate than AdamW, and as many times the weight decay.
    """

    lr: Positive = 2e-4
    """Peak learning rate."""
    beta1: Fraction = 0.9
    """Share of the momentum in a step's direction; the rest is the gradient."""
    beta2: Fraction = 0.99
    """Decay of the momentum."""
    weight_decay: NonNegative = 0.25
    """Decoupled, times the learning rate; not applied to norms and biases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon:
    """Orthogonal steps for hidden matrices and kernels (Jordan et al. 2024), with a partner.

    The partner updates the rest: the first and the last layer, norms, biases and embeddings.
    """

    lr: Positive = 0.02
    """Peak learning rate of the matrices."""
    adamw_lr: Positive = 1e-3
    """Peak learning rate of the rest if AdamW is the partner."""
    momentum: Fraction = 0.95
    """Nesterov momentum of the matrices."""
    weight_decay: NonNegative = 0.01
    """Decoupled, times the learning rate, for the matrices and AdamW; an L2 penalty for SGD.

    Not applied to norms and biases.
    """
    iterations: Annotated[int, Bounds(ge=1, le=10)] = 5
    """Number of Newton-Schulz iterations that make a step orthogonal."""
    normalized: bool = False
    """Whether to scale matrices to the norm sqrt(rows) before every step, without weight decay.

    The rows are a kernel's output channels. Use it for networks with a norm after each matrix,
    where the scale of a matrix only changes the size of its steps.
    """
    partner: Literal["adamw", "sgd"] = "adamw"
    """Optimizer of the rest: AdamW, or SGD with Nesterov momentum."""
    sgd_lr: Positive = 0.1
    """Peak learning rate of the rest if SGD is the partner."""
    sgd_momentum: Fraction = 0.85
    """Momentum of the rest if SGD is the partner."""
    bias_factor: Positive = 1.0
    """Factor of the partner's learning rate for biases and the shifts of norms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """Linear warm-up, then a half cosine down to zero (Loshchilov & Hutter 2017)."""

    warmup: Fraction = 0.05
    """Share of all steps spent warming up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycle:
    """One cosine up and one down, from ``1/div`` of the peak to almost zero (Smith 2018)."""

    warmup: Fraction = 0.3
    """Share of all steps in which the rate rises."""
    div: Annotated[float, Bounds(ge=1)] = 25.0
    """Factor by which the first learning rate is below the peak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trapezoid:
    """Linear warm-up, a constant peak, then a linear decay to zero (Hägele et al. 2024)."""

    warmup: Fraction = 0.05
    """Share of all steps spent warming up."""
    cooldown: Share = 0.4
    """Share of the steps after the warm-up in which the rate falls; 0 holds the peak to the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """Augmentation of each training batch, in this order; by default none."""

    crop: Amount = 0
    """Pixels of reflect padding before a random crop back to size."""
    flip: bool = False
    """Whether to mirror half of the images left to right."""
    alternate: bool = False
    """With ``flip``: draw each image's side once, then switch it every epoch (Jordan 2024)."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Random operations per image, from Cubuk et al. (2020) or Müller & Hutter (2021)."""
    num_ops: Annotated[int, Bounds(ge=1, le=8)] = 2
    """Number of operations per image for ``randaugment``; ``trivialaugment`` has one."""
    magnitude: Annotated[int, Bounds(ge=0, le=30)] = 9
    """Strength of the operations for ``randaugment``; ``trivialaugment`` draws its own."""
    brightness: NonNegative = 0.0
    """Scale all values by a factor in [1 - x, 1 + x]; in random order with the next three."""
    contrast: NonNegative = 0.0
    """Likewise for the distance from the image's mean grey."""
    saturation: NonNegative = 0.0
    """Likewise for the distance from each pixel's own grey."""
    hue: Annotated[float, Bounds(ge=0, le=0.5)] = 0.0
    """Rotate hues by up to this share of the colour circle in either direction."""
    cutout: Amount = 0
    """Side in pixels of a square set to the mean colour (DeVries & Taylor 2017)."""
    erasing: Share = 0.0
    """Share of the images in which a rectangle is set to the mean colour (Zhong et al. 2020)."""
    mixup: NonNegative = 0.0
    """Alpha of the Beta distribution that blends pairs of images (Zhang et al. 2018)."""
    cutmix: NonNegative = 0.0
    """Alpha of the Beta distribution of the pasted area (Yun et al. 2019).

    With ``mixup`` as well, each batch uses one of the two, with equal odds.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Distill:
    """How a student learns from its teacher's probabilities (Hinton et al. 2015).

    The loss is ``(1 - alpha)`` times that of the labels and ``alpha`` times ``temperature ** 2``
    times the divergence of the student's probabilities from the teacher's, both softened.
    """

    alpha: Share = 0.0
    """The teacher's share of the loss. Above 0 it needs a teacher, which ``distill`` provides."""
    temperature: Positive = 4.0
    """Divisor of the logarithms of both probabilities. The higher it is, the more the classes count
    that the teacher considers improbable."""


OPTIMIZERS: dict[str, type] = {"sgd": Sgd, "adamw": AdamW, "lion": Lion, "muon": Muon}
SCHEDULES: dict[str, type] = {"cosine": Cosine, "one_cycle": OneCycle, "trapezoid": Trapezoid}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """One training: the same config, data, seed and device produce the same model."""

    model: Annotated[ModelConfig, Opaque]
    epochs: Epochs
    """Number of epochs of the schedule; a scheduler may stop the trial earlier."""
    seed: Amount = 0
    batch_size: Count = 128
    micro_batches: Count = 1
    """Number of parts in which a batch passes through the network; their gradients are summed.

    More parts need less memory; normalization over a batch sees the parts.
    """
    optimizer: Annotated[Sgd | AdamW | Lion | Muon, OneOf(options=OPTIMIZERS)] = field(
        default_factory=Sgd
    )
    schedule: Annotated[Cosine | OneCycle | Trapezoid, OneOf(options=SCHEDULES)] = field(
        default_factory=Cosine
    )
    clip_norm: NonNegative = 0.0
    """Scale all gradients together down to this norm if theirs is larger; 0 turns it off."""
    augment: Augment = field(default_factory=Augment)
    label_smoothing: Fraction = 0.0
    distill: Distill = field(default_factory=Distill)
    class_weights: ClassWeights = "none"
    """Weight of an image in the training loss: the same for all images, or by class in proportion
    to ``1 / n`` (``balanced``) or ``1 / sqrt(n)`` (``sqrt``), with ``n`` training images in it.

    Validation is not weighted. The more a class counts above its share, the more often it is
    predicted, and the further its probabilities are above its actual frequency.
    """
    logit_adjustment: NonNegative = 0.0
    """``tau`` of the logit-adjusted softmax cross-entropy of Menon et al. (2021, equation 10): the
    training loss is that of the logits plus ``tau * log(share of the class among the training
    images)``; 0 turns it off.

    This variant adjusts the loss, not a finished network. Nothing is added for prediction, so at 1
    the probabilities hold for equally frequent classes. On images as imbalanced as the training
    images they are not calibrated: their NLL is higher, and one temperature does not fix that. A
    vote of adjusted and other members averages the two meanings. With ``class_weights`` as well,
    rare classes are favoured twice.
    """
    ema_decay: Fraction = 0.99
    """Decay per step of the weight average that is validated and saved; 0 turns it off."""
    precision: Precision = "auto"
    """``auto`` is bfloat16 if the device is fast at it, else float32."""

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
    """A cost of the network, as an objective of a search.

    ``latency_ms`` is the median time of an image in milliseconds, from uint8 images in memory to
    their probabilities, on the trial's device and threads. ``parameters`` counts the parameters,
    and ``size_mb`` is the size of the weights in megabytes (10^6 bytes).
    """

    cost: Cost
    batch: Annotated[int, Bounds(ge=1, le=LARGEST_BATCH)] = 1
    """Number of images per batch when the latency is measured."""

    def __str__(self) -> str:
        return self.cost if self.batch == 1 else f"{self.cost} at batch {self.batch}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How a space is searched; the ``search:`` part of a space file."""

    trials: Count = 32
    epochs: Epochs = 27
    """Maximum number of epochs of a trial."""
    grace: Count = 3
    """Epochs before a trial may be paused or stopped; the first rung of ASHA."""
    reduction: Annotated[int, Bounds(ge=2)] = 3
    """ASHA keeps the best one of this many trials at each rung; rungs are this factor apart."""
    sampler: Literal["tpe", "random", "gp", "cmaes", "grid"] = "tpe"
    """Sampler that proposes configurations.

    ``gp`` learns only from completed trials, so a scheduler that stops many leaves it little to
    learn from; it takes spaces without branches. ``cmaes`` takes spaces of two or more numbers and
    nothing else. ``grid`` tries each configuration of a finite space once, in random order.
    """
    scheduler: Literal["asha", "asha-stop", "hyperband", "median", "none"] = "asha"
    """Scheduler that ends trials early; see ``tuner.tuning.schedulers``.

    ``asha`` pauses each trial at each rung and promotes the best; ``asha-stop`` stops each trial
    that is not among the best when it reaches a rung.
    """
    metric: Metric = "accuracy"
    """Metric that ranks, stops and keeps trials, and trains the sampler; fixed for a run."""
    patience: NonNegative = 0.0
    """End the search when the next quarter of its budget is expected to improve the best trial by
    fewer points than this. A point is a hundredth of the metric's unit; 0 never ends it."""
    seed: Amount = 0
    purpose: Literal["best", "ensemble"] = field(default="best", metadata={"key": "for"})
    """What trials are promoted for: the best trial or, at every second promotion in the last third
    of the budget, the gain of the ensemble, which needs ``asha``."""
    costs: tuple[CostObjective, ...] = ()
    """Objectives in addition to the metric; ``objectives:`` of a space. Fixed for a run."""

    @property
    def objectives(self) -> str:
        """All objectives as text."""
        return ", ".join([self.metric, *map(str, self.costs)])

    @property
    def learns(self) -> bool:
        """Whether the sampler learns from trials."""
        return self.sampler in ("tpe", "gp", "cmaes")


try:
    _HOME = Path.home()
except RuntimeError:
    # A user without a home, as in some containers: the current folder takes its place.
    _HOME = Path()
DATA_DIR = _HOME / ".cache" / "cifar-tune"
"""Default folder of downloaded and decoded images."""
AUTO = "auto"
"""Name of a space that is made for the images, the machine and the time."""
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
"""Option of a search -> the key of the space that it overrides."""
DIVISION = ("val_fraction", "folds", "skip_broken", "train_limit")
"""Fields of ``DataConfig`` that determine which images are trained on, and which validated on."""
DATA_SETTINGS = ("image_size", "resize", *DIVISION)
"""Fields of ``DataConfig`` that are options of a search and keys of a space's ``dataset``."""


def rung_epochs(grace: int, reduction: int, epochs: int) -> list[int]:
    """Return the epochs after which trials are compared: ``grace * reduction ** i`` below the last.

    Args:
        grace: The first of these epochs.
        reduction: The factor between two of them.
        epochs: The last epoch of a trial, after which nothing is left to decide.
    """
    rungs = []
    while grace < epochs:
        rungs.append(grace)
        grace *= reduction
    return rungs


REFIT_TOP, REFIT_SEEDS = 5, 3
"""Default number of configurations of a refit, and of seeds for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefitConfig:
    """The trials of a refit: the best configurations of an earlier run, each with several seeds.

    Trial ``n`` has configuration ``n % len(configs)``: all configurations are trained with one seed
    before the next seed begins.
    """

    run: str
    """Name of the earlier run."""
    trials: tuple[int, ...]
    """Numbers of the trials in that run, best first."""
    configs: tuple[TrialConfig, ...]
    """Their configurations, with the refit's epochs and seed 0: each trial gets its own seed."""
    seeds: Count
    """Number of trials of each configuration."""
    duplicates: tuple[int, ...] = ()
    """Trials left out because they have the same configuration as a better one."""

    @property
    def num_trials(self) -> int:
        """Number of trials of the refit."""
        return len(self.configs) * self.seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """Limits that a trained configuration must not exceed; the ``constraints:`` part of a space.

    A configuration that exceeds one of the first two is redrawn before it costs a trial; see
    ``tuner.models.cost``.
    """

    parameters: Positive | None = None
    """Maximum number of parameters of the network; ``None`` sets no limit."""
    flops: Positive | None = None
    """Maximum number of operations of one image's forward pass, two for each multiply-add."""
    epoch_seconds: Positive | None = None
    """Maximum seconds of an epoch, as the trial's worker estimates it from its first steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareConfig:
    """Resources of a trial; a field that is ``None`` follows the more general rule."""

    cpus: Positive | None = None
    gpus: NonNegative | None = None
    """Below 1, several trials share a GPU, each with this share of its memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LargeShareConfig(ShareConfig):
    """Minimum resources of networks with this many ``parameters`` or more."""

    parameters: Positive


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources(ShareConfig):
    """Resources of each trial; the ``resources:`` part of a space.

    The resources of a family replace the general ones.
    """

    by: Mapping[str, ShareConfig] = field(default_factory=dict)
    """Shares by family."""
    large: LargeShareConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The images of a run, and how they are prepared."""

    source: str = "cifar10"
    """A data set of ``data.known``, or a folder, an archive or a manifest of images."""
    image_size: Annotated[int, IMAGE_SIZES] | None = None
    """Side in pixels; ``None`` keeps the data set's own, 32 for a folder."""
    resize: Resize = "squash"
    """A run records how ``auto`` was resolved; runs of earlier versions squash."""
    black: float | None = None
    white: float | None = None
    """Values that become 0 and 255 in images deeper than 8 bits, taken from the training images;
    ``None`` until these are read, and if none is deeper than 8 bits."""
    val_fraction: Annotated[float, Bounds(gt=0, lt=1)] = 0.1
    """Share of the training images to validate on, if the data set has no validation images."""
    folds: Annotated[int, Bounds(ge=LEAST_FOLDS, le=MOST_FOLDS)] | None = None
    """Number of parts into which all images are divided. A configuration trains one network per
    part, on all other parts, and validates it on that part; an epoch is one of each network.
    ``None`` trains one network, validated on ``val_fraction`` of the images or on the data set's
    validation images."""
    skip_broken: bool = False
    """Whether to skip files that cannot be read."""
    train_limit: Count | None = None
    """Number of training images to use, as a stratified part; validation images stay the same. With
    folds, it is a part of all images."""
    all_data: bool = False
    """Whether to train on the validation images, too: then nothing can be chosen by them."""
