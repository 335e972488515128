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

NOT_KEPT = ("name", "storage", "data_dir", "study_storage", "address", "time_budget", "gpu_hours")
"""Options that the environment also sets with ``--resume``: the run to resume, places, which may be
others on this machine, and budgets, which have to be given again. ``data`` is not among them: for a
search it names other images."""


class Option(click.Option):
    """An option whose value, if any, can come from the environment: ``CIFAR_TUNE_<OPTION>``.

    A flag cannot: no word on the command line could unset it, while a value can be replaced.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.name and not self.is_flag:
            option = max(self.opts, key=len).lstrip("-").replace("-", "_")
            # Earlier versions used the names of the parameters.
            names = dict.fromkeys((option, self.name))
            self.envvar = [f"CIFAR_TUNE_{name.upper()}" for name in names]

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the value from the environment; with ``--resume``, the run keeps its own."""
        # Options on the command line, such as --resume, are processed before all others.
        if ctx.params.get("resume") and self.name not in NOT_KEPT:
            return None
        return super().resolve_envvar_value(ctx)

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Convert the value; an empty one, as from a shell variable that is not set, is refused."""
        if "" in (value if isinstance(value, list | tuple) else [value]):
            raise click.BadParameter("it is empty; give a value, or leave it out.", ctx, self)
        return super().type_cast_value(ctx, value)


class Duration(click.ParamType[float]):
    """A time such as ``90s``, ``30m``, ``2h`` or ``1h30m``, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the time in seconds."""
        try:
            return parse_duration(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Amount(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        # Comparisons with NaN are always false, so the range would not refuse it.
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def option(*args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Declare an ``Option``."""
    return click.option(*args, cls=Option, **kwargs)


def together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Declare several options, in this order."""

    def declare_all(command: Callable[..., Any]) -> Callable[..., Any]:
        for declare in reversed(options):
            command = declare(command)
        return command

    return declare_all


class Place(click.ParamType[AnyPath]):
    """A local folder, or the URI of one in an object store."""

    name = "folder|uri"

    def convert(self, value: Any, param: Any, ctx: Any) -> AnyPath:
        """Return the path."""
        return to_path(value) if isinstance(value, str) else value


STORAGE = option(
    "--storage",
    type=Place(),
    default=Path("runs"),
    show_default=True,
    help="Folder with the runs, or its URI, such as s3://BUCKET/runs.",
)
JSON = option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
DEVICE = option(
    "--device",
    default="auto",
    show_default=True,
    help="Device to compute on: auto, cpu, cuda, cuda:1, ...",
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
    help="Run code that came with a run, even if you never searched with it here.",
)
DATA_DIR = option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=config.DATA_DIR,
    help="Folder for downloaded data. [default: ~/.cache/cifar-tune]",
)
IMAGE_SIDE = click.IntRange(config.SMALLEST_IMAGE, config.LARGEST_IMAGE)
IMAGE_SIZE = option(
    "--image-size",
    type=IMAGE_SIDE,
    help="Resize images to this many pixels per side.",
)
RESIZE = option(
    "--resize",
    type=click.Choice(get_args(config.Resize)),
    help="How to make images square. [default: crop if most are far from square, else squash]",
)
VAL_FRACTION = option(
    "--val-fraction",
    type=Amount(min=0, max=1, min_open=True, max_open=True),
    help="Share of the images for validation, if the data set has no such part. [default: 0.1]",
)
FOLDS = option(
    "--folds",
    type=click.IntRange(config.LEAST_FOLDS, config.MOST_FOLDS),
    help="Cross-validate with this many folds: each trial trains one network per fold, on the "
    "images of the other folds.",
)
SKIP_BROKEN = option(
    "--skip-broken",
    is_flag=True,
    default=None,
    help="Skip files that cannot be read, and report them.",
)
METRIC = option(
    "--metric",
    type=click.Choice(get_args(config.Metric)),
    help="Metric to rank and choose trials by, on validation images. [default: the run's]",
)
DATA = option("--data", help="Where the run's images are now. [default: where they were]")
MOVED_DATA_DIR = option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Where downloaded data are now. [default: where they were]",
)
