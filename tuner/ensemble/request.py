"""Options for making an ensemble."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tuner.config import AskedMethod, Diverse, Method, Metric, Tta
from tuner.errors import UsageError
from tuner.run.layout import why_not_name
from tuner.schema import quoted

METHODS: tuple[Method, ...] = get_args(Method)
ASKED_METHODS: tuple[AskedMethod, ...] = get_args(AskedMethod)
SOUPS = frozenset({"soup", "greedy-soup"})
"""Methods that average weights, not votes, into one network."""
POOL = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleRequest:
    """How members are chosen and how they vote; test images play no part in it."""

    top: int = 5
    """Number of members: exact for a vote, the maximum otherwise."""
    method: AskedMethod = "vote"
    """``vote``: equal weights of the best. ``greedy``: ``tuner.voting.greedy``. ``weighted``:
    ``tuner.voting.weighted``. ``soup``, ``greedy-soup``: ``tuner.ensemble.soup``. ``auto``: the
    vote, or the single trial, that ``tuner.ensemble.verdict`` advises."""
    metric: Metric | None = None
    """Metric to choose by, on the validation images; ``None`` is that of the run."""
    pool: int | None = None
    """Number of best trials to choose from; ``None`` is 50, or ``top`` if that is more."""
    diverse: Diverse | None = None
    """Take only the best candidate of each family, configuration (except the seed) or seed."""
    calibrate: bool = False
    """Fit one temperature to the vote."""
    tta: Tta = "none"
    """Views of an image that every member averages, on both validation and test images."""
    max_parameters: int | None = None
    """Maximum number of parameters of all networks together."""
    max_latency_ms: float | None = None
    """Maximum milliseconds of all networks, one after the other, on one image, measured here."""
    front: bool = False
    """Use the trials on the front of the run's objectives as candidates, and their number as
    ``top``."""
    frontier: bool = False
    """Measure latencies and find the members that are best for their time."""
    compare: bool = False
    """Score all methods with the same reading of the test images."""
    duplicates: Path | None = None
    """List of the test images that have near-duplicates in the training data."""
    skip_damaged: bool = False
    """Leave out trials whose files are damaged, or are not those that were recorded."""
    data: str | None = None
    """Where the run's images are now; ``None`` if they were not moved."""
    data_dir: Path | None = None
    """Where downloads and decoded images are kept now; ``None`` if they were not moved."""
    trust_code: bool = False
    """Run code that came with the run even if it is not known here."""
    name: str | None = None
    """Name of the ensemble; ``None`` derives it from the method and its size."""

    def __post_init__(self) -> None:
        # With ``front``, ``top`` becomes the size of the front, and a pool is the best part of it.
        if not self.front and self.pool is not None and self.pool < self.top:
            raise UsageError(f"--pool {self.pool}: is less than --top {self.top}; give more")
        if self.frontier and self.method in SOUPS:
            raise UsageError(f"--frontier: a {self.method} is one network; choose another method")
        # Whatever has this name is replaced, so it must be in the folder of ensembles.
        if reason := why_not_name(self.folder_name):
            name = quoted(self.folder_name)
            raise UsageError(f"--name {name}: {reason}; write one such as top{self.top}")

    @property
    def pool_size(self) -> int:
        """Maximum number of best trials to choose from."""
        return max(POOL, self.top) if self.pool is None else self.pool

    @property
    def least(self) -> int:
        """Minimum number of members: ``top`` for a vote without ``front``, otherwise 1."""
        return self.top if self.method == "vote" and not self.front else 1

    @property
    def computes_to_choose(self) -> bool:
        """Whether networks are computed before any test image is read."""
        return (
            self.tta != "none"
            or self.max_latency_ms is not None
            or self.method in SOUPS
            or self.compare
        )

    @property
    def chosen_by_validation(self) -> tuple[str, ...]:
        """Options that choose by validation images, beyond the order of the trials."""
        asked = {
            f"--method {self.method}": self.method not in ("vote", "soup"),
            f"--metric {self.metric}": self.metric is not None,
            "--calibrate": self.calibrate,
            "--pool": self.pool is not None,
            "--front": self.front,
            "--frontier": self.frontier,
            "--compare": self.compare,
        }
        return tuple(option for option, is_asked in asked.items() if is_asked)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Options that restrict the choice, beyond the number, method and metric."""
        words: list[str] = []
        for name in ("tta", "pool", "diverse", "max_parameters", "max_latency_ms"):
            value = getattr(self, name)
            if value is not None and value != "none":
                words += [f"--{name.replace('_', '-')}", str(value)]
        flags = {"--calibrate": self.calibrate, "--skip-damaged": self.skip_damaged}
        return (*words, *(flag for flag, is_set in flags.items() if is_set))

    @property
    def moved(self) -> tuple[str, ...]:
        """Options that name the place where images, or downloads, are now."""
        places = {"--data": self.data, "--data-dir": self.data_dir}
        return tuple(
            word
            for option, place in places.items()
            if place is not None
            for word in (option, str(place))
        )

    @property
    def folder_name(self) -> str:
        """The folder's name, such as ``top5`` or ``greedy5-calibrated-flip``."""
        if self.name is not None:
            return self.name
        kind = f"{'top' if self.method == 'vote' else self.method}{self.top}"
        if self.front:
            kind = "front" if self.method == "vote" else f"front-{self.method}"
        calibrated = "-calibrated" if self.calibrate else ""
        tta = "" if self.tta == "none" else f"-{self.tta}"
        metric = "" if self.metric is None else f"-{self.metric}"
        return f"{kind}{calibrated}{tta}{metric}"
