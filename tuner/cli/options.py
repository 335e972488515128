"""Options that several commands share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from tuner import config
from tuner.cli import completion
from tuner.errors import UsageError
from tuner.schema import parse_duration
from tuner.storage.paths import AnyPath, to_path


class Option(click.Option):
    """An option that, where it has a value, can come from the environment: ``CIFAR_TUNE_<OPTION>``.

    A flag cannot: no word of a command line would take it back, as a value is replaced by another.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.name and not self.is_flag:
            option = max(self.opts, key=len).lstrip("-").replace("-", "_")
            # Earlier versions had the names of the parameters.
            names = dict.fromkeys((option, self.name))
            self.envvar = [f"CIFAR_TUNE_{name.upper()}" for name in names]


class Duration(click.ParamType[float]):
    """A time such as ``90s``, ``30m``, ``2h`` or ``1h30m``, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return seconds."""
        try:
            return parse_duration(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Amount(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        # No comparison with a NaN is true, so that the range would not refuse it.
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def option(*args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Declare an ``Option``."""
    return click.option(*args, cls=Option, **kwargs)


class Place(click.ParamType[AnyPath]):
    """A folder here, or the URI of one in a store."""

    name = "folder|uri"

    def convert(self, value: Any, param: Any, ctx: Any) -> AnyPath:
        """Return the path."""
        return to_path(value) if isinstance(value, str) else value


STORAGE = option(
    "--storage",
    type=Place(),
    default=Path("runs"),
    show_default=True,
    help="Folder of the runs, or its URI, such as s3://BUCKET/runs.",
)
JSON = option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
DEVICE = option(
    "--device",
    default="auto",
    show_default=True,
    help="Where to compute: auto, cpu, cuda, cuda:1, ...",
)
ENSEMBLE = option(
    "--ensemble",
    metavar="E",
    shell_complete=completion.runs_or_ensembles,
    help="Folder or URI of an ensemble, RUN/NAME, or a run. [default: the newest]",
)
TTA = option(
    "--tta",
    type=click.Choice(get_args(config.Tta)),
    help="Views of an image that each member averages. [default: as the ensemble was made]",
)
TRUST_CODE = option(
    "--trust-code",
    is_flag=True,
    help="Run code that came with a run, even if it was never searched with here.",
)
DATA_DIR = option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=config.DATA_DIR,
    help="Where downloaded data are kept. [default: ~/.cache/cifar-tune]",
)
IMAGE_SIDE = click.IntRange(config.SMALLEST_IMAGE, config.LARGEST_IMAGE)
IMAGE_SIZE = option(
    "--image-size",
    type=IMAGE_SIDE,
    help="Resize images to this many pixels a side.",
)
RESIZE = option(
    "--resize",
    type=click.Choice(get_args(config.Resize)),
    help="How images become square. [default: crop where most are far from it, else squash]",
)
VAL_FRACTION = option(
    "--val-fraction",
    type=Amount(min=0, max=1, min_open=True, max_open=True),
    help="Share of the images to validate on, where the data set has none. [default: 0.1]",
)
FOLDS = option(
    "--folds",
    type=click.IntRange(config.LEAST_FOLDS, config.MOST_FOLDS),
    help="Cross-validate with this many folds: a trial trains a network for each, on all images "
    "but the fold.",
)
SKIP_BROKEN = option(
    "--skip-broken",
    is_flag=True,
    default=None,
    help="Go on without files that cannot be read, and say which.",
)
METRIC = option(
    "--metric",
    type=click.Choice(get_args(config.Metric)),
    help="What trials are ranked and chosen by, on validation images. [default: the run's]",
)
DATA = option("--data", help="Where the run's images are now. [default: where they were]")
MOVED_DATA_DIR = option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Where downloaded data are kept now. [default: where they were]",
)
